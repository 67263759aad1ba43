"""The published requests, and what comes back."""

import asyncio
import threading
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from generation.engine import Engine
from generation.errors import EngineDead, GenerationError
from generation.scoring.validity import check
from miner.engines.local import LocalEngine
from miner.entry import Watch
from miner.request import Answer, Request
from miner.transports.http.files import FileMaker
from miner.transports.refusals import RETRY_AFTER_S
from protocol import ply, spz
from protocol.errors import TaskError
from protocol.gaussians import GaussianCloud
from protocol.tasks import ImageTask
from tests.support.fakes import Remembering, ball, ball_spz
from tests.support.http_running import form, running
from tests.support.running import seconds_by_stage
from tests.support.waiting import PATIENCE_S


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("path", ["/generate/", "/generate"])
@pytest.mark.parametrize("multipart", [True, False])
async def test_a_prompt_becomes_the_very_cloud_as_a_ply_file(
    tmp_path: Path, path: str, multipart: bool
) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        data = {"prompt": "a blue cube", "seed": "7"}
        reply = await miner.post(path, data=form(**data) if multipart else data)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/octet-stream"
        assert int(reply.headers["content-length"]) == len(reply.body)
        (task,) = miner.engine.tasks
        assert (task.prompt, task.seed) == ("a blue cube", 7)
    cloud = ply.decode(reply.body)
    for name, values in ball().arrays():  # Not as SPZ would have rounded it ...
        np.testing.assert_array_equal(getattr(cloud, name), values)
    assert spz.encode(cloud) == ball_spz()  # ... which is still what it compresses to.


@pytest.mark.parametrize("path", ["/generate/", "/generate"])
async def test_an_image_goes_in_as_it_is(tmp_path: Path, path: str) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        reply = await miner.post(path, data=form(prompt_image_file=picture(), seed="0"))
        assert reply.status == 200
        (task,) = miner.engine.tasks
        assert isinstance(task, ImageTask)
        assert (task.image, task.seed) == (picture(), 0)
        assert miner.engine.ran[0][1] == "cutout"
    assert check(ply.decode(reply.body)).passed


async def test_the_up_axis_is_turned_in_the_file(tmp_path: Path) -> None:
    async with running(tmp_path, up_axis="-y") as miner:
        reply = await miner.post(data={"prompt": "a blue cube"})
    turned = ply.decode(reply.body)
    np.testing.assert_array_equal(turned.positions, ball().positions * np.array([1, -1, -1]))
    np.testing.assert_array_equal(turned.rotations[:, 1], ball().rotations[:, 0])
    assert check(turned).passed


async def test_headers_name_the_words_that_the_networks_know_and_the_others(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, vocabulary=("red", "car")) as miner:
        reply = await miner.post(data={"prompt": "the Löwe's red cars, 100% shiny\r\nX-Evil: 1"})
        assert reply.status == 200
        assert reply.headers["X-Understood-Words"] == "red, car (cars)"
        assert reply.headers["X-Ignored-Words"] == "l%C3%B6we, 100, shiny, x, evil, 1"
        assert "X-Evil" not in reply.headers
        known = await miner.post(data={"prompt": "a red car"})
        assert known.headers["X-Understood-Words"] == "red, car"
        assert "X-Ignored-Words" not in known.headers
        many = await miner.post(data={"prompt": "red " + "獅子獅子獅子獅 " * 100})
        assert many.headers["X-Ignored-Words"] == "%E7%8D%85%E5%AD%90" * 3 + "%E7%8D%85"
        words = await miner.post(data={"prompt": "red " + " ".join(map(str, range(200)))})
        assert words.headers["X-Ignored-Words"].endswith("14, 15, ...")


async def test_a_prompt_without_a_known_word_is_refused_with_the_known_ones(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, vocabulary=("red", "car")) as miner:
        reply = await miner.post(data={"prompt": "a dragon", "task_id": "t"})
        assert reply.status == 422
        assert reply.json == {
            "message": "the networks know no word of the prompt; use some of car, red",
            "task_id": "t",
            "outcome": "rejected",
            "reason_code": "unknown_words",
        }
        assert reply.headers["X-Ignored-Words"] == "dragon"
        assert "X-Understood-Words" not in reply.headers
        pictured = await miner.post(data=form(prompt_image_file=picture()))
        assert pictured.status == 200
        assert not {"X-Understood-Words", "X-Ignored-Words"} & set(pictured.headers)


async def test_the_log_tells_the_stages_and_the_total_time(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="INFO")
    try:
        async with running(tmp_path) as miner:
            reply = await miner.post(data={"prompt": "a very secret cube"})
            (answered,) = miner.events("answered")
    finally:
        logger.remove(sink)
    (line,) = [line for line in lines if "Total time" in line]
    for stage, seconds in seconds_by_stage(miner.engine).items():
        assert f"{stage} {seconds:.2f} s" in line
        assert f"{stage};dur={1000 * seconds:.1f}" in reply.headers["server-timing"]
    assert "8,000 Gaussians" in line
    assert answered["task_id"] in line
    assert not any("secret" in line for line in lines)
    assert (answered["transport"], answered["caller"]) == ("http", "local")


async def test_the_file_is_written_off_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[threading.Thread] = []
    encode = ply.encode

    def noting(cloud: GaussianCloud) -> bytes:
        threads.append(threading.current_thread())
        return encode(cloud)

    monkeypatch.setattr(ply, "encode", noting)
    async with running(tmp_path) as miner:
        await miner.post(data={"prompt": "a blue cube"})
    assert threads
    assert threading.current_thread() not in threads


async def test_a_request_that_would_be_late_is_answered_with_the_time_to_ask_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, budget_s=4.0) as miner:  # The lowest rung takes 4.0 s.
        late = await miner.post(data={"prompt": "a red cube"})
    assert late.status == 503
    assert late.json["reason_code"] == "predicted_late"
    late_s = late.json["predicted_s"] - late.json["budget_s"]
    assert late_s > 0.0
    assert late_s <= int(late.headers["retry-after"]) < late_s + 1.0
    assert late.json["outcome"] == "dropped"
    assert "of 3.0 s" in late.message


async def test_a_caller_beyond_its_share_may_ask_again_in_a_few_seconds(tmp_path: Path) -> None:
    async with running(tmp_path, budget_s=8.0) as miner:  # Two of 5.2 s are too many.
        miner.engine.hold_at = "denoise"
        first = asyncio.create_task(miner.post(data={"prompt": "a blue cube"}))
        await miner.engine.holding.wait()
        second = await miner.post(data={"prompt": "a red cube"})
        miner.engine.release.set()
        assert (await first).status == 200
    assert (second.status, second.json["reason_code"]) == (503, "caller_share")
    assert second.headers["retry-after"] == str(RETRY_AFTER_S)


@pytest.mark.parametrize(
    ("answer", "status", "retry_after"),
    [
        (Answer("dropped", "predicted_late", "why", "t", predicted_s=31.2, budget_s=28.0), 503, 4),
        (Answer("dropped", "predicted_late", "why", "t", predicted_s=28.1, budget_s=28.0), 503, 1),
        (Answer("dropped", "caller_share", "why", "t", predicted_s=9.0, budget_s=28.0), 503, 5),
        (
            Answer(
                "dropped",
                "predicted_late_stage",
                "why",
                "t",
                stage="splats",
                predicted_s=9.0,
                budget_s=28.0,
            ),
            503,
            5,
        ),
        (Answer("dropped", "engine_suspect", "why", "t"), 503, 5),
        (Answer("dropped", "draining", "why", "t"), 503, 5),
        (Answer("rejected", "bad_task", "why", "t"), 422, None),
        (Answer("failed", "generation_error", "why", "t", stage="lift"), 500, None),
        (Answer("failed", "engine_dead", "why", "t"), 500, None),
    ],
)
async def test_every_outcome_has_its_status_and_says_why(
    tmp_path: Path, answer: Answer, status: int, retry_after: int | None
) -> None:
    async def handle(request: Request, *, watch: Watch | None = None) -> Answer:
        return answer

    async with running(tmp_path) as miner:
        miner.service.handle = handle  # type: ignore[method-assign]
        reply = await miner.post(data={"prompt": "a blue cube"})
    assert reply.status == status
    assert reply.message == "why"
    assert (reply.json["outcome"], reply.json["reason_code"]) == (
        answer.outcome,
        answer.reason_code,
    )
    assert reply.json.get("stage") == answer.stage
    assert reply.headers.get("retry-after") == (None if retry_after is None else str(retry_after))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GenerationError("splats failed: no surface"), "generation_error"),
        (EngineDead("splats lost the device"), "engine_dead"),
    ],
)
async def test_a_failure_is_status_500_with_the_reason(
    tmp_path: Path, error: Exception, code: str
) -> None:
    async with running(tmp_path) as miner:
        miner.engine.error_at, miner.engine.error = "splats", error
        reply = await miner.post(data={"prompt": "a blue cube"})
    assert (reply.status, reply.json["reason_code"]) == (500, code)
    assert str(error) in reply.message


async def test_a_task_that_only_the_engine_can_judge_is_422(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.error_at, miner.engine.error = "cutout", TaskError("no object in the picture")
        reply = await miner.post(data=form(prompt_image_file=picture()))
    assert (reply.status, reply.json["reason_code"]) == (422, "bad_task")
    assert "no object in the picture" in reply.message


async def test_the_service_learns_how_long_the_delivery_took(tmp_path: Path) -> None:
    learned: list[tuple[str, int, float]] = []
    async with running(tmp_path) as miner:
        miner.service.delivered = lambda *values: learned.append(values)  # type: ignore
        assert (await miner.post(data={"prompt": "a blue cube"})).status == 200
        assert (await miner.post(data={"prompt": ""})).status == 422
    ((transport, size, seconds),) = learned
    assert (transport, size) == ("http", len(ball_spz()))
    assert 0.0 < seconds < 5.0


async def test_health_follows_the_states(tmp_path: Path) -> None:
    async with running(tmp_path, ready=False) as miner:
        loading = await miner.ask("GET", "/health")
        early = await miner.post(data={"prompt": "a blue cube"})
        await miner.service.start()
        ready = await miner.ask("GET", "/health")
        await miner.service.drain()
        draining = await miner.ask("GET", "/health")
    assert (loading.status, loading.json) == (503, {"status": "starting"})
    assert (early.status, early.json["reason_code"]) == (503, "not_ready")
    assert (ready.status, ready.json) == (200, {"status": "healthy"})
    assert (draining.status, draining.json) == (503, {"status": "draining"})


async def test_closing_delivers_what_is_under_way(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.engine.hold_at = "splats"
        asking = asyncio.create_task(miner.post(data={"prompt": "a blue cube"}))
        await miner.engine.holding.wait()
    assert (await asking).status == 200


class Warm(LocalEngine):
    """The warm engine of this run under its name in the miner; it has been started already."""

    def __init__(self, engine: Engine, seconds: Mapping[str, float]) -> None:
        self.__dict__ = {**engine.__dict__, "name": "local"}
        self._seconds = seconds

    async def start(self) -> None:
        pass

    async def warm_up(self) -> Mapping[str, float]:
        return self._seconds

    async def close(self, *, limit_s: float = 0.0) -> bool:
        return True


async def test_the_real_engine_behind_it_makes_a_valid_file(
    tmp_path: Path, warm_engine: Engine, warm_up_seconds: dict[str, float]
) -> None:
    async with running(tmp_path, engine=Warm(warm_engine, warm_up_seconds)) as miner:
        reply = await miner.post(data=form(prompt="a blue cube"))
    assert reply.status == 200, reply.body
    report = check(ply.decode(reply.body))
    assert report.passed, report.summary()


async def test_a_preview_that_its_caller_does_not_wait_for_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, given_up = asyncio.Event(), asyncio.Event()

    async def endless(files: FileMaker, cloud: GaussianCloud) -> bytes:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        return b""

    monkeypatch.setattr(FileMaker, "preview", endless)
    async with running(tmp_path) as miner:
        asking = asyncio.create_task(miner.post(data={"prompt": "a blue cube", "format": "png"}))
        await asyncio.wait_for(began.wait(), PATIENCE_S)
        asking.cancel()
        await asyncio.wait_for(given_up.wait(), PATIENCE_S)
