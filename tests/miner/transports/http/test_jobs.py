"""Jobs: started, watched, cancelled, downloaded, forgotten."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import trimesh
from PIL import Image

from generation.errors import GenerationError
from miner.request import Request
from miner.transports.http import files, jobs
from miner.transports.http.files import FILES
from miner.transports.http.job_store import JobLimits
from protocol import ply
from protocol.errors import TaskError
from protocol.tasks import ImageTask
from tests.support.fakes import Remembering, ball, ball_spz, picture
from tests.support.http_running import Reply, Running, form, running
from tests.support.loopback import RawClient
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.usefixtures("quick")

PROMPT = {"prompt": "a blue cube", "seed": "7"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PREVIEW_SIDE", 32)
    monkeypatch.setattr(jobs, "LOOK_EVERY_S", 0.1)


async def started(miner: Running, **arguments: Any) -> dict[str, Any]:
    """The job of a new request."""
    reply = await miner.post("/jobs", **(arguments or {"data": PROMPT}))
    assert reply.status == 202, reply.body
    job: dict[str, Any] = reply.json
    assert reply.headers["location"] == f"/jobs/{job['id']}"
    return job


async def events(miner: Running, job_id: str) -> AsyncIterator[dict[str, Any]]:
    """The events of a job, until the miner ends the stream."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{miner.transport.url}/jobs/{job_id}/events") as stream,
    ):
        assert stream.status == 200
        assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
        async for line in stream.content:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])


async def ended(miner: Running, job_id: str) -> dict[str, Any]:
    """The job at its end."""
    return [job async for job in events(miner, job_id)][-1]


async def until(condition: Callable[[], Awaitable[bool]], within_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110  # Nothing tells of it.
            await asyncio.sleep(0.01)


async def file(miner: Running, job: dict[str, Any], kind: str) -> Reply:
    reply = await miner.ask("GET", job["files"][kind])
    assert reply.headers["cache-control"] == "no-store"
    return reply


async def test_a_job_becomes_an_object_with_a_file_of_every_kind(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["reason_code"], job["message"]) == ("done", "ok", None)
        assert (job["kind"], job["prompt"], job["seed"]) == ("text", "a blue cube", 7)
        assert (job["gaussians"], job["bytes"], job["valid"]) == (8000, len(ball_spz()), True)
        assert {stage["state"] for stage in job["stages"]} == {"done"}
        assert set(job["files"]) == set(FILES)
        made = {kind: await file(miner, job, kind) for kind in FILES}
    assert {reply.status for reply in made.values()} == {200}
    np.testing.assert_array_equal(ply.decode(made["ply"].body).positions, ball().positions)
    assert made["spz"].body == ball_spz()
    for kind in ("glb", "obj"):
        mesh = trimesh.load(BytesIO(made[kind].body), file_type=kind, force="mesh")
        assert len(mesh.faces) == 4
    sizes = {
        kind: Image.open(BytesIO(made[kind].body)).size for kind in ("picture", "cutout", "preview")
    }
    assert sizes == {"picture": (8, 8), "cutout": (8, 8), "preview": (69, 69)}
    types = {kind: reply.headers["content-type"] for kind, reply in made.items()}
    assert types["glb"] == "model/gltf-binary"
    assert types["obj"] == "model/obj"
    assert types["preview"] == types["picture"] == types["cutout"] == "image/png"


async def test_the_files_are_those_that_generate_answers(tmp_path: Path) -> None:
    async with running(tmp_path, up_axis="-y") as miner:
        job = await ended(miner, (await started(miner))["id"])
        for name, kind in (("ply", "ply"), ("spz", "spz"), ("glb", "glb"), ("obj", "obj")):
            reply = await miner.post(data={**PROMPT, "format": name})
            assert reply.status == 200
            assert reply.body == (await file(miner, job, kind)).body
        drawn = await miner.post(data={**PROMPT, "format": "PNG"})
        assert drawn.headers["content-type"] == "image/png"
        assert drawn.body == (await file(miner, job, "preview")).body
        refused = await miner.post(data={**PROMPT, "format": "stl"})
        assert refused.status == 422
        assert refused.message == "format must be one of ply, spz, glb, obj, png; got stl"


async def test_an_event_tells_of_every_step_and_the_last_one_ends_the_stream(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        stream = events(miner, (await started(miner))["id"])
        seen = [await anext(stream)]
        while not any(s["name"] == "lift" and s["state"] == "running" for s in seen[-1]["stages"]):
            seen.append(await anext(stream))
        assert seen[-1]["state"] == "running"
        assert seen[-1]["predicted_s"] > 0
        assert [stage["state"] for stage in seen[-1]["stages"]] == [
            *["done"] * 4, "running", "waiting", "waiting",
        ]  # fmt: skip
        miner.engine.release.set()
        rest = [job async for job in stream]
        assert [job["state"] for job in rest if job["state"] != "running"] == ["done"]


async def test_many_watch_one_job_and_a_late_one_sees_its_end_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        watching = [asyncio.create_task(ended(miner, job["id"])) for _ in range(8)]
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        await until(lambda: streams(miner, 8))
        miner.engine.release.set()
        last = await asyncio.gather(*watching)
        assert {job["state"] for job in last} == {"done"}
        assert [job async for job in events(miner, job["id"])] == [last[0]]
        shown = await miner.ask("GET", f"/jobs/{job['id']}")  # A page that is loaded again.
        assert shown.json == last[0]
        assert len(miner.engine.plans) == 1


async def streams(miner: Running, count: int) -> bool:
    return miner.transport._jobs._streams == count


async def test_a_waiting_job_says_how_many_go_before_it(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "prompt"
        first = await started(miner)
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        stream = events(miner, (await started(miner))["id"])
        job = await anext(stream)
        while job["ahead"] is None:
            job = await anext(stream)
        assert (job["state"], job["ahead"]) == ("queued", 1)
        await miner.ask("DELETE", f"/jobs/{first['id']}")
        while job["ahead"] == 1:
            job = await anext(stream)
        assert job["state"] == "running" or job["ahead"] == 0
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_cancelled_job_frees_its_place_at_once_and_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        watching = asyncio.create_task(ended(miner, job["id"]))
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        await until(lambda: streams(miner, 1))
        address = f"/jobs/{job['id']}"
        assert (await miner.ask("DELETE", address)).status == 204
        last = await asyncio.wait_for(watching, PATIENCE_S)
        assert (last["state"], last["reason_code"]) == ("dropped", "caller_left")
        for method in ("GET", "DELETE"):
            assert (await miner.ask(method, address)).status == 404
        assert (await miner.ask("GET", f"{address}/events")).status == 404
        assert miner.service.snapshot().active == {}
        (line,) = miner.events("answered")
        assert line["reason_code"] == "caller_left"


async def test_a_finished_job_can_be_forgotten_and_old_ones_are(tmp_path: Path) -> None:
    async with running(tmp_path, job_limits=JobLimits(kept=2)) as miner:
        made = [await ended(miner, (await started(miner))["id"]) for _ in range(3)]
        found = [(await miner.ask("GET", f"/jobs/{job['id']}")).status for job in made]
        assert found == [404, 200, 200]
        assert (await miner.ask("GET", made[0]["files"]["spz"])).status == 404
        assert (await miner.ask("DELETE", f"/jobs/{made[2]['id']}")).status == 204
        assert (await miner.ask("GET", made[2]["files"]["spz"])).status == 404


async def test_a_job_that_would_be_late_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, budget_s=3.0) as miner:
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["reason_code"]) == ("dropped", "predicted_late")
        assert "queue" in job["message"]
        assert (job["stages"], job["files"]) == ([], {})
        reply = await miner.ask("GET", f"/jobs/{job['id']}/files/asset.ply")
        assert reply.status == 404
        assert reply.message == "the job is dropped; it has files once it is done"


async def test_a_picture_without_an_object_is_rejected_and_a_damaged_one_refused(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as miner:
        miner.engine.error_at, miner.engine.error = "cutout", TaskError("there is no object")
        job = await ended(
            miner, (await started(miner, data=form(prompt_image_file=picture())))["id"]
        )
        assert (job["kind"], job["prompt"]) == ("image", None)
        assert (job["state"], job["message"]) == ("rejected", "there is no object")
        refused = await miner.post("/jobs", data=form(prompt_image_file=b"no picture"))
        assert refused.status == 422
        assert refused.json["reason_code"] == "bad_task"


async def test_a_failed_generation_fails_its_job(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.error_at, miner.engine.error = "lift", GenerationError("no surface")
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["message"]) == ("failed", "no surface")


async def test_jobs_beyond_the_limit_are_sent_away(tmp_path: Path) -> None:
    async with running(tmp_path, job_limits=JobLimits(running=2)) as miner:
        miner.engine.hold_at = "prompt"
        first = await started(miner)
        await started(miner)
        refused = await miner.post("/jobs", data=PROMPT)
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert refused.json["reason_code"] == "overloaded"
        await miner.ask("DELETE", f"/jobs/{first['id']}")
        await started(miner)


async def test_a_miner_that_is_not_ready_drops_its_jobs(tmp_path: Path) -> None:
    async with running(tmp_path, ready=False) as miner:
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["reason_code"]) == ("dropped", "not_ready")


async def test_event_streams_are_bounded_and_free_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "STREAMS", 3)
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        watching = [asyncio.create_task(ended(miner, job["id"])) for _ in range(3)]
        await until(lambda: streams(miner, 3))
        refused = await miner.ask("GET", f"/jobs/{job['id']}/events")
        assert (refused.status, refused.json["reason_code"]) == (503, "overloaded")
        watching.pop().cancel()
        await until(lambda: streams(miner, 2))
        watching.append(asyncio.create_task(ended(miner, job["id"])))
        await until(lambda: streams(miner, 3))
        miner.engine.release.set()
        assert {job["state"] for job in await asyncio.gather(*watching)} == {"done"}
        await until(lambda: streams(miner, 0))
        for _ in range(2):
            head = await miner.ask("HEAD", f"/jobs/{job['id']}/events")
            assert (head.status, head.body) == (200, b"")
        assert await streams(miner, 0)


async def test_a_slow_reader_misses_events_but_never_the_newest(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        own = miner.transport._jobs
        record = own._store.get(job["id"])
        assert record is not None
        changes = own._changes(record)
        assert '"name":"lift"' in await anext(changes)
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)  # Some steps later.
        assert '"name":"lift","state":"running"' in await anext(changes)
        miner.engine.release.set()  # After which two stages come.
        await until(lambda: over(record))
        assert '"state":"done"' in await anext(changes)
        assert [event async for event in changes] == []


async def over(record: Any) -> bool:
    return record.answer is not None


async def test_a_reader_that_stops_reading_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        client = RawClient(miner.port, receive_buffer=1)
        await client.send(
            f"GET /jobs/{job['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        await until(lambda: streams(miner, 1))
        miner.engine.release.set()
        assert (await ended(miner, job["id"]))["state"] == "done"
        await until(lambda: streams(miner, 0))  # What is left fits the buffers of the kernel.
        client.close()


async def test_a_silent_stream_is_kept_alive_by_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "COMMENT_EVERY_S", 0.05)
    monkeypatch.setattr(jobs, "LOOK_EVERY_S", 0.02)
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        url = f"{miner.transport.url}/jobs/{job['id']}/events"
        async with aiohttp.ClientSession() as session, session.get(url) as stream:
            async with asyncio.timeout(PATIENCE_S):
                while not (line := await stream.content.readline()).startswith(b":"):
                    assert line == b"\n" or line.startswith(b"data: ")


async def test_draining_ends_jobs_and_streams(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        watching = asyncio.create_task(ended(miner, job["id"]))
        await until(lambda: streams(miner, 1))
        draining = asyncio.create_task(miner.service.drain())
        await asyncio.sleep(0)
        late = await ended(miner, (await started(miner))["id"])
        assert (late["state"], late["reason_code"]) == ("dropped", "draining")
        miner.engine.release.set()
        await asyncio.wait_for(draining, PATIENCE_S)
        assert (await asyncio.wait_for(watching, PATIENCE_S))["state"] == "done"


async def test_a_closing_transport_cancels_what_has_not_drained(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        job = await started(miner)
        watching = asyncio.create_task(ended(miner, job["id"]))
        await until(lambda: streams(miner, 1))
        await asyncio.wait_for(miner.transport.close(), 8.0)
        assert (await watching)["reason_code"] == "caller_left"


async def test_a_mesh_is_made_once_of_the_picture_and_the_seed_of_the_job(tmp_path: Path) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        job = await ended(miner, (await started(miner))["id"])
        miner.engine.hold_at = "mesh"
        asking = [asyncio.create_task(file(miner, job, kind)) for kind in ("glb", "obj", "glb")]
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        miner.engine.release.set()
        assert {reply.status for reply in await asyncio.gather(*asking)} == {200}
        assert (await file(miner, job, "obj")).status == 200
        drawn, lifted = miner.engine.tasks
        assert isinstance(lifted, ImageTask)
        assert lifted.seed == drawn.seed == 7
        pixels = np.asarray(Image.open(BytesIO(lifted.image)))
        np.testing.assert_array_equal(pixels, np.zeros((8, 8, 3)))
        assert [step.stage for step in miner.engine.plans[1].steps] == ["cutout", "lift", "mesh"]
        lines = miner.events("answered")
        assert [line.get("triangles") for line in lines] == [None, 4]


async def test_the_mesh_of_a_given_picture_is_made_of_its_file(tmp_path: Path) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        data = form(prompt_image_file=picture(), seed="3")
        job = await ended(miner, (await started(miner, data=data))["id"])
        assert (await file(miner, job, "glb")).status == 200
        assert [(task.image, task.seed) for task in miner.engine.tasks] == [(picture(), 3)] * 2


async def test_a_mesh_that_nobody_waits_for_any_more_is_given_up(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        job = await ended(miner, (await started(miner))["id"])
        miner.engine.hold_at = "lift"
        asking = [asyncio.create_task(file(miner, job, "glb")) for _ in range(2)]
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        asking.pop().cancel()
        await asyncio.sleep(0.05)
        assert miner.service.snapshot().active == {"http": 1}  # The other one still waits.
        asking.pop().cancel()
        await until(lambda: idle(miner))
        assert miner.events("answered")[-1]["reason_code"] == "caller_left"


async def test_a_fault_of_the_miner_ends_the_job_and_frees_its_place(tmp_path: Path) -> None:
    async with running(tmp_path, job_limits=JobLimits(running=1)) as miner:
        broken = pytest.MonkeyPatch()
        broken.setattr(miner.service._desk, "log", lambda *arguments: 1 / 0)
        job = await asyncio.wait_for(ended(miner, (await started(miner))["id"]), PATIENCE_S)
        broken.undo()
        assert (job["state"], job["reason_code"]) == ("failed", "internal_error")
        assert job["message"] == "unexpected ZeroDivisionError"
        assert (await ended(miner, (await started(miner))["id"]))["state"] == "done"


async def idle(miner: Running) -> bool:
    return miner.service.snapshot().active == {}


async def test_a_mesh_that_fails_says_so_and_can_be_asked_for_again(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        job = await ended(miner, (await started(miner))["id"])
        miner.engine.error_at, miner.engine.error = "mesh", GenerationError("too few triangles")
        failed = await miner.ask("GET", job["files"]["glb"])
        assert (failed.status, failed.message) == (500, "too few triangles")
        miner.engine.error_at = None
        assert (await file(miner, job, "glb")).status == 200


@pytest.mark.parametrize("api_key", [None, "k"])
async def test_jobs_need_the_key_and_pages_do_not(tmp_path: Path, api_key: str | None) -> None:
    async with running(tmp_path, api_key=api_key) as miner:
        own = {"X-API-Key": "k"}
        reply = await miner.post("/jobs", data=PROMPT, headers=own)
        address = reply.headers["location"]
        for method, path, status in (
            ("POST", "/jobs", 202),
            ("GET", "/status", 200),
            ("GET", address, 200),
            ("GET", f"{address}/events", 200),
            ("GET", f"{address}/files/asset.spz", 200),
            ("DELETE", address, 204),
        ):
            data = PROMPT if method == "POST" else None
            for headers, expected in ((None, 401 if api_key else status), (own, status)):
                if method == "DELETE" and headers is None and api_key is None:
                    continue
                reply = await miner.ask(method, path, data=data, headers=headers)
                assert reply.status == expected, (method, path)
        for path in ("/", "/docs", "/docs/redoc.js", "/openapi.json", "/health"):
            assert (await miner.ask("GET", path)).status == 200


async def test_a_foreign_page_can_neither_start_nor_cancel_nor_see_jobs(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        foreign = {"Origin": "https://evil.example"}
        assert (await miner.post("/jobs", data=PROMPT, headers=foreign)).status == 403
        address = f"/jobs/{(await started(miner))['id']}"
        assert (await miner.ask("DELETE", address, headers=foreign)).status == 403
        rebound = {"Host": "evil.example"}
        for path in (address, f"{address}/events", "/status", "/docs", "/openapi.json", "/"):
            assert (await miner.ask("GET", path, headers=rebound)).status == 403
        shown = await miner.ask("GET", address)
        assert shown.status == 200
        assert not any("access-control" in name.lower() for name in shown.headers)


async def test_the_status_names_what_the_miner_can_do(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "lift"
        await started(miner)
        await asyncio.wait_for(miner.engine.holding.wait(), PATIENCE_S)
        status = (await miner.ask("GET", "/status")).json
        assert (status["state"], status["active"]) == ("ready", 1)
        assert status["predicted_wait_s"] >= 0.0
        assert status["formats"] == ["ply", "spz", "glb", "obj", "png"]


async def test_a_request_of_the_service_has_the_tasks_id_of_its_caller(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        seen: list[Request] = []
        handle = miner.service.handle

        async def noting(request: Request, **arguments: Any) -> Any:
            seen.append(request)
            return await handle(request, **arguments)

        miner.service.handle = noting  # type: ignore[method-assign]
        # A job can be downloaded in every format, so it takes no notice of one.
        data = {**PROMPT, "task_id": "mine", "format": "glb"}
        await ended(miner, (await started(miner, data=data))["id"])
        assert [(request.task.id, request.output) for request in seen] == [("mine", "splats")]
