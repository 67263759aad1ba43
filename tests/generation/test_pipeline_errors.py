"""What goes wrong in a stage ends that request, or the engine, and never silently."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import torch

from generation.errors import EngineDead, GenerationError
from generation.pipeline import STAGES, GenerationPipeline
from generation.presets import preset
from protocol.errors import CodecError, SetupError, TaskError
from protocol.tasks import ImageTask
from tests.support.fake_stages import FakeStages, cloud, task

DEVICE_ASSERT = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might")
ACCELERATOR = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
async def pipeline(fakes: FakeStages) -> AsyncIterator[GenerationPipeline]:
    pipeline = GenerationPipeline(preset("embedded"), stages=fakes.stages(), progress=False)
    yield pipeline
    await pipeline.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GenerationError("no surface"), "no surface"),
        (ValueError("bad shape"), "splats failed: ValueError: bad shape"),
        (CodecError("too large"), "splats failed: CodecError: too large"),
        (RuntimeError("mat1 and mat2\nshapes"), "splats failed: RuntimeError: mat1 and mat2"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "splats ran out of memory"),
        (MemoryError(), "splats ran out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "splats ran out of memory"),
        (RuntimeError("CUDA error: out of memory"), "splats ran out of memory"),
    ],
)
async def test_an_error_in_a_stage_fails_that_request_alone(
    pipeline: GenerationPipeline, fakes: FakeStages, error: Exception, message: str
) -> None:
    fakes.faults["splats"] = error
    with pytest.raises(GenerationError) as caught:
        await pipeline.generate(task("x"))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    del fakes.faults["splats"]
    assert (await pipeline.generate(task("next"))).spz == b"spz"


@pytest.mark.parametrize("error", [DEVICE_ASSERT, ACCELERATOR])
async def test_a_lost_device_ends_the_engine(
    pipeline: GenerationPipeline, fakes: FakeStages, error: Exception
) -> None:
    fakes.faults["scene_code"] = error
    release = fakes.hold("background")
    first = asyncio.create_task(pipeline.generate(task("first")))
    await asyncio.to_thread(fakes.entered["background"].wait, 10)
    release()
    with pytest.raises(EngineDead, match="scene_code lost the device"):
        await first
    del fakes.faults["scene_code"]
    before = len(fakes.calls)
    with pytest.raises(EngineDead, match="scene_code lost the device"):
        await pipeline.generate(task("next"))
    assert len(fakes.calls) == before


async def test_the_device_is_known_to_be_lost_though_the_caller_has_left(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.faults["scene_code"], release = DEVICE_ASSERT, fakes.hold("scene_code")
    request = asyncio.create_task(pipeline.generate(task("x")))
    await asyncio.to_thread(fakes.entered["scene_code"].wait, 10)
    request.cancel()
    release()
    with pytest.raises(EngineDead):
        await pipeline.generate(task("next"))


async def test_an_unexpected_error_is_logged_with_its_traceback(
    pipeline: GenerationPipeline, fakes: FakeStages, log: list[str]
) -> None:
    fakes.faults["background"] = ZeroDivisionError("division by zero")
    with pytest.raises(GenerationError):
        await pipeline.generate(task("x"))
    (line,) = [line for line in log if line.startswith("ERROR")]
    assert "Traceback" in line
    assert "fake_stages.py" in line


async def test_a_cloud_that_scores_zero_is_not_answered(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.result = cloud(6_999)
    with pytest.raises(GenerationError, match=r"score the cloud 0.*gaussians is 6999 .*7000"):
        await pipeline.generate(task("x"))


async def test_a_damaged_image_is_the_callers_fault(pipeline: GenerationPipeline) -> None:
    damaged = ImageTask(id="i", image=b"\x89PNG\r\n\x1a\n" + bytes(40))
    with pytest.raises(TaskError):
        await pipeline.generate(damaged)


async def test_a_failing_warm_up_is_a_setup_error(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.faults["encode"] = RuntimeError("broken")
    with pytest.raises(SetupError, match="failed its warm-up: encode failed"):
        await pipeline.start()


async def test_a_warm_up_goes_through_every_stage_twice(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    timings = await pipeline.start()
    assert fakes.names() == [*STAGES, *STAGES]
    assert tuple(timings) == STAGES


async def test_generating_before_the_start_is_a_mistake_of_the_program() -> None:
    pipeline = GenerationPipeline(preset("embedded"))
    with pytest.raises(RuntimeError, match="before start"):
        await pipeline.generate(task("x"))
    await pipeline.close()
