"""Stages run in order, each in its lane, timed without waiting, and say so."""

import asyncio
import io
import itertools
from collections.abc import AsyncIterator, Mapping

import pytest
from PIL import Image

from generation.pipeline import STAGES, GenerationPipeline, stages_for
from generation.presets import preset
from protocol.tasks import ImageTask, TextTask
from tests.support.fake_stages import FakeStages, task

SETTINGS = preset("embedded")


@pytest.fixture
async def pipeline(fakes: FakeStages) -> AsyncIterator[GenerationPipeline]:
    pipeline = GenerationPipeline(SETTINGS, stages=fakes.stages())
    yield pipeline
    await pipeline.close()


def _png(mode: str, colour: tuple[int, ...], size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


async def test_a_text_task_goes_through_every_stage(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    result = await pipeline.generate(task("a chair"))
    assert fakes.names() == list(STAGES) == list(stages_for(task("x")))
    assert tuple(result.timings) == STAGES
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert fakes.drawn == ["a chair"]
    assert (result.task_id, result.spz) == ("a chair", b"spz")
    assert result.cloud is fakes.result
    assert result.validity.passed
    assert (result.image.mode, result.cutout.mode) == ("RGB", "RGBA")


async def test_on_cuda_splats_are_made_beside_another_request(fakes: FakeStages) -> None:
    pipeline = GenerationPipeline(preset("gpu80"), stages=fakes.stages())
    finish_splats = fakes.hold("splats")
    first = asyncio.create_task(pipeline.generate(task("first")))
    assert await asyncio.to_thread(fakes.entered["splats"].wait, 10)
    finish_scene = fakes.hold("scene_code")
    second = asyncio.create_task(pipeline.generate(task("second")))
    assert await asyncio.to_thread(fakes.entered["scene_code"].wait, 10)
    assert not first.done()
    finish_scene()
    finish_splats()
    await asyncio.gather(first, second)
    await pipeline.close()
    threads = {stage: thread.split("_")[0] for stage, thread in fakes.calls}
    assert threads["text_to_image"] == threads["scene_code"] == "gpu"
    assert threads["splats"] == "splats"


async def test_an_image_task_enters_one_stage_later(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    given = ImageTask(id="i", image=_png("RGB", (10, 20, 30)))
    result = await pipeline.generate(given)
    assert fakes.names() == list(STAGES[1:]) == list(stages_for(given))
    assert result.image.getpixel((0, 0)) == (10, 20, 30)


async def test_a_transparent_image_is_shown_on_grey(pipeline: GenerationPipeline) -> None:
    result = await pipeline.generate(ImageTask(id="i", image=_png("RGBA", (255, 0, 0, 0))))
    assert result.image.mode == "RGB"
    assert result.image.getpixel((0, 0)) == (127, 127, 127)


async def test_a_large_image_is_scaled_down_before_anything_is_done_with_it(
    pipeline: GenerationPipeline,
) -> None:
    wide = ImageTask(id="i", image=_png("RGBA", (255, 0, 0, 255), (4000, 500)))
    result = await pipeline.generate(wide)
    assert result.image.size == result.cutout.size == (1024, 128)
    assert result.image.getpixel((512, 64)) == (255, 0, 0)


async def test_stages_run_in_their_lanes(pipeline: GenerationPipeline, fakes: FakeStages) -> None:
    await pipeline.generate(task("x"))
    lanes = {stage: thread.split("_")[0] for stage, thread in fakes.calls}
    assert lanes == {
        "text_to_image": "gpu",
        "background": "cpu",
        "scene_code": "gpu",
        "splats": "gpu",
        "encode": "cpu",
    }


async def test_the_next_prompt_is_drawn_while_a_background_is_removed(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    release = fakes.hold("background")
    first = asyncio.create_task(pipeline.generate(task("first")))
    await asyncio.to_thread(fakes.entered["background"].wait, 10)
    finish_drawing, second_drawn = fakes.hold("text_to_image"), fakes.entered["text_to_image"]
    second = asyncio.create_task(pipeline.generate(task("second")))
    await asyncio.to_thread(second_drawn.wait, 10)
    assert fakes.drawn == ["first", "second"]
    finish_drawing()
    release()
    await asyncio.gather(first, second)


async def test_the_older_request_is_finished_before_a_younger_one_is_begun(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    finish_scene = fakes.hold("scene_code")
    first = asyncio.create_task(pipeline.generate(task("first")))
    await asyncio.to_thread(fakes.entered["scene_code"].wait, 10)
    second = asyncio.create_task(pipeline.generate(task("second")))
    await asyncio.sleep(0.01)
    finish_scene()
    await asyncio.gather(first, second)
    on_gpu = [stage for stage, thread in fakes.calls if thread.startswith("gpu")]
    # The second request was waiting when the first one asked for its last stage on the device.
    assert on_gpu == ["text_to_image", "scene_code", "splats"] * 2


async def test_timings_leave_out_the_waiting(fakes: FakeStages) -> None:
    ticks = itertools.count()
    pipeline = GenerationPipeline(SETTINGS, stages=fakes.stages(), clock=lambda: next(ticks))
    release = fakes.hold("text_to_image")
    first = asyncio.create_task(pipeline.generate(task("first")))
    await asyncio.to_thread(fakes.entered["text_to_image"].wait, 10)
    second = asyncio.create_task(pipeline.generate(task("second"), deadline=1e9))
    for _ in range(100):
        next(ticks)  # A hundred ticks pass while the second request waits.
    await asyncio.sleep(0)
    release()
    held, waited = await asyncio.gather(first, second)
    assert held.timings["text_to_image"] >= 100
    assert waited.timings["text_to_image"] < 20
    await pipeline.close()


async def test_events_tell_of_every_stage_in_the_event_loop(fakes: FakeStages) -> None:
    events: list[tuple[str, Mapping[str, object]]] = []

    def listen(event: str, details: Mapping[str, object]) -> None:
        asyncio.get_running_loop()
        events.append((event, details))

    pipeline = GenerationPipeline(SETTINGS, stages=fakes.stages(), on_event=listen)
    result = await pipeline.generate(TextTask(id="x\n1", prompt="x"))
    assert [(name, details["stage"]) for name, details in events] == [
        (name, stage) for stage in STAGES for name in ("stage_started", "stage_finished")
    ]
    assert {details["task"] for _, details in events} == {"x?1"}
    seconds = {d["stage"]: d["seconds"] for name, d in events if name == "stage_finished"}
    assert seconds == result.timings
    await pipeline.close()
