"""Deadline, gate and cancellation act between stages and leave the engine ready."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from generation.errors import GenerationStopped
from generation.pipeline import STAGES, GenerationPipeline
from generation.presets import preset
from tests.support.fake_stages import FakeStages, task


class Clock:
    """Stands still until it is told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def pipeline(fakes: FakeStages, clock: Clock) -> AsyncIterator[GenerationPipeline]:
    pipeline = GenerationPipeline(preset("embedded"), stages=fakes.stages(), clock=clock)
    yield pipeline
    await pipeline.close()


async def test_nothing_starts_at_or_after_the_deadline(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    for deadline, late in ((100.0, "0.00"), (98.5, "1.50")):
        with pytest.raises(GenerationStopped, match=f"{late} s ago") as caught:
            await pipeline.generate(task("x"), deadline=deadline)
        assert caught.value.stage == "text_to_image"
    assert fakes.calls == []


@pytest.mark.parametrize("last", STAGES[:-1])
async def test_a_deadline_that_passes_in_a_stage_stops_the_next(
    pipeline: GenerationPipeline, fakes: FakeStages, clock: Clock, last: str
) -> None:
    def gate(stage: str) -> None:
        if stage == last:
            clock.now = 110.0

    with pytest.raises(GenerationStopped) as caught:
        await pipeline.generate(task("x"), deadline=105.0, gate=gate)
    reached = STAGES.index(last) + 1
    assert caught.value.stage == STAGES[reached]
    assert fakes.names() == list(STAGES[:reached])
    assert list(caught.value.timings) == list(STAGES[:reached])


@pytest.mark.parametrize("refused", STAGES)
async def test_the_gate_is_asked_before_each_stage(
    pipeline: GenerationPipeline, fakes: FakeStages, refused: str
) -> None:
    asked: list[str] = []

    def gate(stage: str) -> None:
        asyncio.get_running_loop()
        asked.append(stage)
        if stage == refused:
            raise GenerationStopped(stage, "predicted 31 s of 30 s")

    with pytest.raises(GenerationStopped, match=f"before {refused}: predicted 31 s"):
        await pipeline.generate(task("x"), gate=gate)
    position = STAGES.index(refused)
    assert asked == list(STAGES[: position + 1])
    assert fakes.names() == list(STAGES[:position])
    assert (await pipeline.generate(task("next"))).spz == b"spz"


async def test_the_gate_is_asked_after_the_waiting(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    release, asked = fakes.hold("text_to_image"), list[str]()
    first = asyncio.create_task(pipeline.generate(task("first")))
    await asyncio.to_thread(fakes.entered["text_to_image"].wait, 10)
    second = asyncio.create_task(
        pipeline.generate(task("second"), gate=lambda stage: asked.append(stage))
    )
    await asyncio.sleep(0.01)
    assert asked == []
    release()
    await asyncio.gather(first, second)
    assert asked == list(STAGES)


async def test_a_cancelled_request_runs_no_further_stage(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    release = fakes.hold("scene_code")
    request = asyncio.create_task(pipeline.generate(task("x")))
    await asyncio.to_thread(fakes.entered["scene_code"].wait, 10)
    request.cancel()
    # The caller is free at once, though the stage still runs.
    with pytest.raises(asyncio.CancelledError):
        await request
    release()
    assert (await pipeline.generate(task("next"))).spz == b"spz"
    assert fakes.names() == ["text_to_image", "background", "scene_code", *STAGES]


async def test_closing_waits_for_the_stage_that_runs(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    release = fakes.hold("splats")
    request = asyncio.create_task(pipeline.generate(task("x")))
    await asyncio.to_thread(fakes.entered["splats"].wait, 10)
    request.cancel()
    closing = asyncio.create_task(pipeline.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    release()
    await closing
