"""The jobs of the HTTP transport: which are kept, and for how long. Pure: a clock and values in."""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from math import isfinite
from typing import Any

import numpy as np

from generation.plan import Step
from generation.stage import TriangleMesh
from miner.request import ActiveRequest, Answer, Request
from miner.scheduling.candidates import Candidates
from miner.transports.http.files import FILES
from miner.transports.http.models import (
    CandidateCounts,
    FileKind,
    Job,
    JobState,
    StageProgress,
    StageState,
)
from protocol.tasks import ImageTask, TextTask


@dataclass(frozen=True)
class JobLimits:
    """How much is kept.

    Attributes:
        running: Jobs without an answer, at most.
        kept: Finished jobs, at most.
        kept_bytes: What they hold together, at most; the youngest is kept whatever it holds.
        kept_s: Seconds after its end for which a job is kept.
    """

    running: int = 32
    kept: int = 64
    kept_bytes: int = 256 * 2**20
    kept_s: float = 3600.0


@dataclass(eq=False)
class JobRecord:
    """A job.

    Attributes:
        id: Cannot be guessed.
        request: What was asked for.
        asked_at: When, on the store's clock.
        active: What the service tells of it between its admission and its end.
        answer: What became of it.
        withheld: Whether it has an object that is not sent, because the gate is against it.
        most: Pictures that were drawn for it at most, once there is a score.
        stages: Its stages when it ended.
        ended_at: When it ended, on the store's clock.
        mesh: The same object as a mesh, if one has been made.
        preview: A PNG picture of the object, if one has been made.
        size: Bytes that it holds.
    """

    id: str
    request: Request = field(repr=False)
    asked_at: float
    active: ActiveRequest | None = field(default=None, repr=False)
    answer: Answer | None = field(default=None, repr=False)
    withheld: bool = False
    most: int = 1
    stages: list[StageProgress] = field(default_factory=list)
    ended_at: float | None = None
    mesh: TriangleMesh | None = field(default=None, repr=False)
    preview: bytes = field(default=b"", repr=False)
    size: int = 0

    @property
    def state(self) -> JobState:
        """Where it is."""
        if self.answer is None:
            if self.improved is not None:
                return "improving"
            return "queued" if self.active is None or self.active.engine is None else "running"
        if self.answer.outcome != "completed":
            return self.answer.outcome
        return "withheld" if self.withheld else "done"

    @property
    def improved(self) -> Candidates | None:
        """Its candidates while there may be further ones; None before and afterwards."""
        candidates = None if self.active is None else self.active.candidates
        return candidates if candidates is not None and candidates.limits.max > 1 else None


class JobStore:
    """Holds a bounded number of jobs, and forgets finished ones, the oldest first.

    Args:
        limits: How much is kept.
        clock: Monotonic clock, in seconds.
        new_id: Makes ids that cannot be guessed.
        send_gated: Whether objects that the gate is against have files all the same.
        files: The names of a job's files.
    """

    def __init__(
        self,
        limits: JobLimits,
        clock: Callable[[], float],
        new_id: Callable[[], str] = lambda: secrets.token_urlsafe(16),
        *,
        send_gated: bool = True,
        files: Mapping[FileKind, str] = FILES,
    ) -> None:
        self._files = files
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._send_gated = send_gated
        self._running: dict[str, JobRecord] = {}
        self._kept: dict[str, JobRecord] = {}  # In the order in which they ended.

    @property
    def full(self) -> bool:
        """Whether there are as many jobs without an answer as there may be."""
        return len(self._running) >= self._limits.running

    @property
    def running(self) -> int:
        """How many jobs have no answer."""
        return len(self._running)

    @property
    def kept(self) -> int:
        """How many finished jobs are kept."""
        return len(self._kept)

    @property
    def kept_bytes(self) -> int:
        """What the finished jobs hold."""
        return sum(job.size for job in self._kept.values())

    def add(self, request: Request) -> JobRecord | None:
        """Takes a new job, which is running until `finish`; returns None if there is no place."""
        if self.full:
            return None
        job = JobRecord(self._new_id(), request, self._clock())
        self._running[job.id] = job
        return job

    def get(self, job_id: str) -> JobRecord | None:
        """Returns a job, or None if there is none or it has been forgotten."""
        self._forget()
        return self._running.get(job_id) or self._kept.get(job_id)

    def finish(self, job: JobRecord, answer: Answer) -> None:
        """Notes the answer of a running job, and drops what is no longer needed."""
        job.stages = _last_stages(job, self._clock(), answer)
        job.withheld = answer.gated and not self._send_gated
        if job.improved is not None:
            job.most = job.improved.limits.max
        job.answer, job.ended_at, job.active = answer, self._clock(), None
        job.size = _held(job.request, answer)
        if self._running.pop(job.id, None) is not None:
            self._kept[job.id] = job
        self._forget()

    def note_mesh(self, job: JobRecord, mesh: TriangleMesh) -> None:
        """Keeps the mesh of a finished job with it."""
        job.mesh = mesh
        job.size += sum(
            array.nbytes for array in (mesh.vertices, mesh.faces, mesh.normals, mesh.rgb)
        )
        self._forget()

    def note_preview(self, job: JobRecord, png: bytes) -> None:
        """Keeps the preview of a finished job with it."""
        job.preview = png
        job.size += len(png)
        self._forget()

    def remove(self, job: JobRecord) -> None:
        """Forgets a job, running or finished."""
        self._running.pop(job.id, None)
        self._kept.pop(job.id, None)

    def describe(self, job: JobRecord, *, ahead: int | None) -> Job:
        """Returns what the API says of a job now.

        Args:
            job: Running, finished or forgotten.
            ahead: Requests that go before it.
        """
        now, task, answer, active = self._clock(), job.request.task, job.answer, job.active
        source = answer or active
        predicted = None if source is None else source.predicted_s
        budget = None if source is None else source.budget_s
        done = answer is not None and job.state == "done"
        rung = active.plan.rung.name if active is not None else None
        return Job(
            id=job.id,
            kind=task.kind,
            prompt=task.prompt if isinstance(task, TextTask) else None,
            seed=answer.seed if answer is not None and done else task.seed,
            state=job.state,
            ahead=ahead if job.state == "queued" else None,
            predicted_s=predicted if predicted is not None and isfinite(predicted) else None,
            budget_s=budget if budget is not None and isfinite(budget) else None,
            elapsed_s=max(0.0, (now if job.ended_at is None else job.ended_at) - job.asked_at),
            rung=answer.rung if answer is not None else rung,
            stages=job.stages if answer is not None else _stages(job, now),
            message=answer.reason if answer is not None and not done else None,
            reason_code=answer.reason_code if answer is not None else None,
            gaussians=answer.gaussians if answer is not None and done else None,
            bytes=len(answer.asset) if answer is not None and done else None,
            valid=answer.validity.passed if answer is not None and answer.validity else None,
            **_scores(job),
            understood=_words(answer, answer.understood) if answer is not None else None,
            ignored=_words(answer, answer.ignored) if answer is not None else None,
            files={k: f"/jobs/{job.id}/files/{n}" for k, n in self._files.items()} if done else {},
        )

    def _forget(self) -> None:
        """Forgets what is too old or too much."""
        now, held = self._clock(), self.kept_bytes
        for job in list(self._kept.values()):
            old = now - (job.ended_at or 0.0) >= self._limits.kept_s
            much = len(self._kept) > self._limits.kept or held > self._limits.kept_bytes
            if not old and (not much or len(self._kept) == 1):
                return
            held -= job.size
            del self._kept[job.id]


def _stages(job: JobRecord, now: float) -> list[StageProgress]:
    """The stages of a job that has no answer yet."""
    active = job.active
    if active is None:
        return []
    found: list[StageProgress] = []
    start = 0
    for name, group in groupby(active.plan.steps, key=_stage_of):
        steps = len(list(group))
        done = min(steps, max(0, active.position - start))
        seconds = active.ran.get(name)
        state: StageState = "waiting" if done == 0 else "running" if done < steps else "done"
        if active.step_since is not None and start <= active.position < start + steps:
            state = "running"
            seconds = (seconds or 0.0) + max(0.0, now - active.step_since)
        found.append(StageProgress(name=name, state=state, seconds=seconds, done=done, steps=steps))
        start += steps
    return found


def _last_stages(job: JobRecord, now: float, answer: Answer) -> list[StageProgress]:
    """The stages of a job at its end: nothing runs; all are done if there is an object."""
    found = []
    for stage in _stages(job, now):
        if answer.outcome == "completed":
            seconds = answer.timings.get(stage.name)
            changes = {"state": "done", "done": stage.steps, "seconds": seconds}
        elif stage.state == "running":
            changes = {"state": "waiting"}
        else:
            changes = {}
        found.append(stage.model_copy(update=changes))
    return found


def _scores(job: JobRecord) -> dict[str, Any]:
    """What a job says of its score and its candidates."""
    answer, now = job.answer, job.improved
    if answer is not None and answer.score is not None:
        gate = answer.gate
        return {
            "score": answer.score.value,
            "first_score": answer.first_score,
            "scorer": answer.score.scorer,
            "score_parts": dict(answer.score.parts),
            "candidates": CandidateCounts(
                made=answer.candidates, drawn=answer.pictures, most=max(job.most, answer.pictures)
            ),
            "gated": answer.gated if gate is not None else None,
            "gate_reason": gate.reason if gate is not None else None,
        }
    names = ("scorer", "score_parts", "gated", "gate_reason")
    unknown: dict[str, Any] = dict.fromkeys((*names, "score", "first_score", "candidates"))
    if now is None:
        return unknown
    counts = CandidateCounts(made=now.made, drawn=now.drawn, most=now.limits.max)
    best = now.best.score
    return unknown | {"score": best, "first_score": now.first_score, "candidates": counts}


def _stage_of(step: Step) -> str:
    return step.stage


def _words(answer: Answer, words: tuple[str, ...]) -> list[str] | None:
    return list(words) if answer.understood or answer.ignored else None


def _held(request: Request, answer: Answer) -> int:
    """Bytes that a finished job holds, to within a few hundred."""
    held = len(answer.asset)
    if isinstance(request.task, ImageTask):
        held += len(request.task.image)
    if answer.cloud is not None:
        held += sum(values.nbytes for _, values in answer.cloud.arrays())
    pictures: list[np.ndarray | None] = [answer.picture, answer.cutout]
    return held + sum(picture.nbytes for picture in pictures if picture is not None)
