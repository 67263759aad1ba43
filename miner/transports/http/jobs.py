"""`/jobs`: objects that are made while their callers watch, and are kept for a while."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any

from loguru import logger
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse

from generation.stage import TriangleMesh
from miner.request import ActiveRequest, Answer, Request
from miner.service import MinerService
from miner.transports.connections import while_connected
from miner.transports.http.files import FILES, FORMATS, FileMaker, Shared, files_of, why_not
from miner.transports.http.intake import CALLER, NAME, Intake
from miner.transports.http.job_store import JobRecord, JobStore
from miner.transports.http.models import FormatName, Job
from miner.transports.http.replies import json_reply, without_object
from miner.transports.refusals import Refusal, RefusalLog
from protocol.images import ImageLimits
from protocol.tasks import ImageTask, Task

STREAMS = 32
"""Event streams at once: each takes the place of a request for as long as its job runs."""
LOOK_EVERY_S = 1.0
"""How often a stream looks for changes that no step of its job brings: its place in the queue."""
COMMENT_EVERY_S = 10.0
"""Longest silence of a stream, so that nobody between takes it for dead."""

_KINDS = {name: kind for kind, name in FILES.items()}
_PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Jobs:
    """Starts, shows, cancels and serves jobs; all in the service's event loop.

    Args:
        service: Makes the objects.
        store: Keeps them.
        intake: Reads tasks.
        files: Makes files.
        refusals: Receives jobs and streams that find no place.
    """

    def __init__(
        self,
        service: MinerService,
        store: JobStore,
        intake: Intake,
        files: FileMaker,
        refusals: RefusalLog,
    ) -> None:
        self._service = service
        self._store = store
        self._intake = intake
        self._files = files
        self._refusals = refusals
        self._runs: dict[str, _Run] = {}
        self._streams = 0
        self._shared = Shared()

    async def create(self, http_request: HttpRequest) -> Response:
        """Answers `POST /jobs`."""
        if self._store.full:
            return self._no_place("as many jobs are running as the miner takes")
        asked = await self._intake.read(http_request)
        if isinstance(asked, Response):
            return asked
        request = asked.request
        # All files can be made of it, whichever was asked for.
        job = self._store.add(replace(request, output="splats"))
        if job is None:
            return self._no_place("as many jobs are running as the miner takes")
        run = self._runs[job.id] = _Run()
        run.task = asyncio.create_task(self._run(job, run))
        run.task.add_done_callback(partial(self._over, job, run))
        headers = {"Location": f"/jobs/{job.id}", **_PRIVATE}
        return json_reply(202, self._describe(job).model_dump(), headers)

    async def show(self, http_request: HttpRequest) -> Response:
        """Answers `GET /jobs/ID`."""
        return json_reply(200, self._describe(self._job(http_request)).model_dump(), _PRIVATE)

    async def remove(self, http_request: HttpRequest) -> Response:
        """Answers `DELETE /jobs/ID`: cancels the job, or forgets it if it has ended."""
        job = self._job(http_request)
        self._store.remove(job)
        run = self._runs.get(job.id)
        if run is not None and run.task is not None:
            run.task.cancel()
        return Response(status_code=204)

    async def events(self, http_request: HttpRequest) -> Response:
        """Answers `GET /jobs/ID/events`: the job whenever it has changed, until it has ended."""
        job = self._job(http_request)
        headers = {**_PRIVATE, "X-Accel-Buffering": "no"}
        if http_request.method == "HEAD":
            return Response(headers=headers, media_type="text/event-stream")
        if self._streams >= STREAMS:
            return self._no_place(f"{STREAMS} event streams are open, which is the limit")
        return _EventStream(self, self._changes(job), headers)

    async def file(self, http_request: HttpRequest) -> Response:
        """Answers `GET /jobs/ID/files/NAME`."""
        job = self._job(http_request)
        kind = _KINDS.get(http_request.path_params["name"])
        if kind is None:
            names = ", ".join(files_of(self._service.outputs).values())
            raise HTTPException(404, f"there is no such file; the files are {names}")
        if (why := why_not(self._service, kind)) is not None:
            raise HTTPException(404, f"there is no such file: {why}")
        answer = job.answer
        if answer is not None and job.state == "withheld":
            return without_object(answer)
        if answer is None or answer.outcome != "completed":
            raise HTTPException(404, f"the job is {job.state}; it has files once it is done")
        if kind in ("glb", "obj"):
            return await self._mesh_file(job, kind)
        if kind in ("ply", "spz"):
            content = await self._files.file(kind, answer)
            return Response(content, 200, _PRIVATE, FORMATS[kind].media_type)
        if kind == "preview":
            if not job.preview:
                preview = partial(self._preview, job, answer)
                await while_connected(self._shared.join((job.id, "preview"), preview))
            return Response(job.preview, 200, _PRIVATE, "image/png")
        pixels = answer.picture if kind == "picture" else answer.cutout
        assert pixels is not None
        return Response(await self._files.picture(pixels), 200, _PRIVATE, "image/png")

    async def close(self) -> None:
        """Cancels what runs; call it once the service has drained."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _job(self, http_request: HttpRequest) -> JobRecord:
        job = self._store.get(http_request.path_params["id"])
        if job is None:
            raise HTTPException(
                404, "there is no such job; the miner forgets finished jobs after a while"
            )
        return job

    def _describe(self, job: JobRecord) -> Job:
        ahead = self._service.ahead(job.request.id) if job.answer is None else None
        return self._store.describe(job, ahead=ahead)

    async def _run(self, job: JobRecord, run: "_Run") -> Answer:
        def watch(active: ActiveRequest) -> None:
            job.active = active
            run.ring()

        return await self._service.handle(job.request, watch=watch)

    def _over(self, job: JobRecord, run: "_Run", task: "asyncio.Task[Answer]") -> None:
        if task.cancelled():
            reason = "the job was cancelled"
            answer = Answer("dropped", "caller_left", reason, job.request.task.id)
        elif (error := task.exception()) is not None:  # Otherwise the job would never end.
            logger.opt(exception=error).error("job {} failed", job.id)
            reason = f"unexpected {type(error).__name__}"
            answer = Answer("failed", "internal_error", reason, job.request.task.id)
        else:
            answer = task.result()
        self._store.finish(job, answer)
        del self._runs[job.id]
        run.ring()

    async def _changes(self, job: JobRecord) -> AsyncIterator[str]:
        """Yields the job as an event whenever it has changed; only the newest state counts.

        A reader who is slow gets fewer events, not later ones: nothing is kept for it.
        """
        told: object = None
        told_at = monotonic()
        while True:
            run = self._runs.get(job.id)
            bell = None if run is None else run.bell
            state = self._describe(job)
            if (mark := _mark(state)) != told:
                told, told_at = mark, monotonic()
                yield f"data: {state.model_dump_json()}\n\n"
            elif monotonic() - told_at >= COMMENT_EVERY_S:
                told_at = monotonic()
                yield ": still there\n\n"
            if bell is None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await bell.wait()

    async def _mesh_file(self, job: JobRecord, name: FormatName) -> Response:
        if job.mesh is None:
            mesh = partial(self._mesh, job)
            refused: Answer | None = await while_connected(
                self._shared.join((job.id, "mesh"), mesh)
            )
            if refused is not None:
                return without_object(refused)
        assert job.mesh is not None
        content = await self._files.mesh(name, job.mesh)
        return Response(content, 200, _PRIVATE, FORMATS[name].media_type)

    async def _mesh(self, job: JobRecord) -> Answer | None:
        """Makes the mesh of a finished job; returns why not, if not."""
        task = await self._task_of_mesh(job)
        answer = await self._service.handle(Request(task, CALLER, NAME, monotonic(), output="mesh"))
        if not isinstance(answer.mesh, TriangleMesh):
            return answer
        self._store.note_mesh(job, answer.mesh)
        return None

    async def _task_of_mesh(self, job: JobRecord) -> Task:
        """The picture of the job, so that the mesh is of the same object and takes less time."""
        task, answer = job.request.task, job.answer
        if isinstance(task, ImageTask) or answer is None or answer.picture is None:
            return task
        png = await self._files.picture(answer.picture)
        if len(png) > ImageLimits().bytes:
            # The same seed draws the same picture again.
            return task.model_copy(update={"seed": answer.seed})
        return ImageTask(id=task.id, image=png, seed=answer.seed)

    async def _preview(self, job: JobRecord, answer: Answer) -> None:
        assert answer.cloud is not None
        self._store.note_preview(job, await self._files.preview(answer.cloud))

    def _no_place(self, reason: str) -> Response:
        refusal = Refusal("overloaded", f"{reason}; try again later")
        self._refusals.note(refusal, warn=True)
        return refusal.answer(503)


@dataclass(eq=False)
class _Run:
    """A job without an answer: its task, and a bell that rings at its next change."""

    task: "asyncio.Task[Answer] | None" = None
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        self.bell.set()
        self.bell = asyncio.Event()


class _EventStream(StreamingResponse):
    """Counts as one of the open streams until it has ended, however that comes about."""

    def __init__(self, jobs: Jobs, events: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._jobs = jobs

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._jobs._streams += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._jobs._streams -= 1


def _mark(job: Job) -> object:
    """What makes a difference to a reader: all but the seconds that go by."""
    stages = tuple((stage.name, stage.state, stage.done) for stage in job.stages)
    admitted = (job.ahead, job.predicted_s, job.budget_s, job.rung)
    return (job.state, admitted, stages, job.score, job.candidates)
