"""The published requests, and what comes back."""

import asyncio
import threading
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger
from PIL import Image

from generation.errors import EngineDead, GenerationError
from generation.pipeline import GenerationPipeline
from generation.presets import preset
from generation.scoring.validity import check
from miner.transports.http import server
from protocol import ply, spz
from protocol.gaussians import GaussianCloud
from protocol.tasks import ImageTask
from tests.support.fakes import PRIOR, FakeGenerator, ball, ball_spz
from tests.support.http_running import form, running


def picture() -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


class Remembering(FakeGenerator):
    """Keeps the tasks that it was given."""

    def __init__(self, prior: Mapping[str, float] | None = None) -> None:
        super().__init__(prior)
        self.tasks: list[Any] = []

    async def generate(self, task: Any, **arguments: Any) -> Any:
        self.tasks.append(task)
        return await super().generate(task, **arguments)


@pytest.mark.parametrize("path", ["/generate/", "/generate"])
@pytest.mark.parametrize("multipart", [True, False])
async def test_a_prompt_becomes_the_very_cloud_as_a_ply_file(
    tmp_path: Path, path: str, multipart: bool
) -> None:
    async with running(tmp_path, generator=Remembering()) as miner:
        data = {"prompt": "a blue cube", "seed": "7"}
        reply = await miner.post(path, data=form(**data) if multipart else data)
        assert reply.status == 200
        assert reply.headers["content-type"] == "application/octet-stream"
        assert int(reply.headers["content-length"]) == len(reply.body)
        (task,) = miner.generator.tasks
        assert (task.prompt, task.seed) == ("a blue cube", 7)
    cloud = ply.decode(reply.body)
    for name, values in ball().arrays():  # Not as SPZ would have rounded it ...
        np.testing.assert_array_equal(getattr(cloud, name), values)
    assert spz.encode(cloud) == ball_spz()  # ... which is still what it compresses to.


@pytest.mark.parametrize("path", ["/generate/", "/generate"])
async def test_an_image_goes_in_as_it_is(tmp_path: Path, path: str) -> None:
    async with running(tmp_path, generator=Remembering()) as miner:
        reply = await miner.post(path, data=form(prompt_image_file=picture(), seed="0"))
        assert reply.status == 200
        (task,) = miner.generator.tasks
        assert isinstance(task, ImageTask)
        assert (task.image, task.seed) == (picture(), 0)
        assert miner.generator.ran[0][1] == "background"
    assert check(ply.decode(reply.body)).passed


async def test_the_up_axis_is_turned_in_the_file(tmp_path: Path) -> None:
    async with running(tmp_path, up_axis="-y") as miner:
        reply = await miner.post(data={"prompt": "a blue cube"})
    turned = ply.decode(reply.body)
    np.testing.assert_array_equal(turned.positions[:, 1], -ball().positions[:, 1])
    np.testing.assert_array_equal(turned.rotations[:, 3], ball().rotations[:, 0])
    assert check(turned).passed


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
    for stage, seconds in PRIOR.items():
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


async def test_a_request_that_would_be_late_is_told_when_to_ask_again(tmp_path: Path) -> None:
    async with running(tmp_path, budget_s=8.0) as miner:  # One takes 4 s, so two are too many.
        miner.generator.hold_at = "text_to_image"
        first = asyncio.create_task(miner.post(data={"prompt": "a blue cube"}))
        await miner.generator.holding.wait()
        second = await miner.post(data={"prompt": "a red cube"})
        miner.generator.release.set()
        assert (await first).status == 200
    assert (second.status, second.json["reason_code"]) == (503, "predicted_late")
    predicted, budget = second.json["predicted_s"], second.json["budget_s"]
    assert budget == 7.0
    assert predicted - budget <= int(second.headers["retry-after"]) < predicted - budget + 1.5
    assert "would be late: predicted" in second.message


async def test_too_many_at_once_are_told_so(tmp_path: Path) -> None:
    async with running(tmp_path, max_pending_per_caller=1) as miner:
        miner.generator.hold_at = "text_to_image"
        first = asyncio.create_task(miner.post(data={"prompt": "a blue cube"}))
        await miner.generator.holding.wait()
        second = await miner.post(data={"prompt": "a red cube"})
        miner.generator.release.set()
        assert (await first).status == 200
    assert (second.status, second.json["reason_code"]) == (503, "caller_limit")
    assert int(second.headers["retry-after"]) == server.RETRY_AFTER_S


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
        miner.generator.error_at, miner.generator.error = "splats", error
        reply = await miner.post(data={"prompt": "a blue cube"})
    assert (reply.status, reply.json["reason_code"]) == (500, code)
    assert str(error) in reply.message


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
        miner.generator.hold_at = "splats"
        asking = asyncio.create_task(miner.post(data={"prompt": "a blue cube"}))
        await miner.generator.holding.wait()
    assert (await asking).status == 200


async def test_the_real_pipeline_behind_it_makes_a_valid_file(tmp_path: Path) -> None:
    pipeline = GenerationPipeline(preset("embedded"), progress=False)
    async with running(tmp_path, generator=pipeline) as miner:
        reply = await miner.post(data=form(prompt="a blue cube"))
    assert reply.status == 200, reply.body
    report = check(ply.decode(reply.body))
    assert report.passed, report.summary()
