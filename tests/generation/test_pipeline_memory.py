"""Running out of memory costs caches first, then that request, and never the engine."""

import gc
import weakref
from collections.abc import AsyncIterator

import pytest
import torch

from generation.errors import EngineDead, OutOfMemory
from generation.lift.triposr.chunking import map_in_chunks
from generation.pipeline import GenerationPipeline
from generation.presets import preset
from generation.recovery import attempt
from tests.support.fake_stages import FakeStages, task

FULL = torch.OutOfMemoryError("tried to allocate 2 GiB")


@pytest.fixture
async def pipeline(fakes: FakeStages) -> AsyncIterator[GenerationPipeline]:
    pipeline = GenerationPipeline(preset("embedded"), stages=fakes.stages(), progress=False)
    await pipeline.start()
    fakes.calls.clear()
    yield pipeline
    await pipeline.close()


@pytest.mark.parametrize("stage", ["text_to_image", "background", "scene_code", "splats"])
async def test_a_stage_that_fits_without_caches_is_done_again(
    pipeline: GenerationPipeline, fakes: FakeStages, stage: str
) -> None:
    fakes.faults[stage], fakes.cures = FULL, True
    result = await pipeline.generate(task("x"))
    assert result.spz == b"spz"
    assert fakes.names().count(stage) == 2
    assert (len(fakes.calls), fakes.drops) == (6, 1)


async def test_a_stage_that_does_not_fit_fails_its_request_alone(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.faults["splats"] = FULL
    with pytest.raises(OutOfMemory, match="splats ran out of memory"):
        await pipeline.generate(task("x"))
    assert (fakes.names().count("splats"), fakes.drops) == (2, 1)
    fakes.faults.clear()
    assert (await pipeline.generate(task("next"))).spz == b"spz"


async def test_other_errors_are_not_tried_again(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.faults["splats"] = ValueError("bad shape")
    with pytest.raises(Exception, match="bad shape"):
        await pipeline.generate(task("x"))
    assert (fakes.names().count("splats"), fakes.drops) == (1, 0)


async def test_a_device_lost_while_caches_are_dropped_ends_the_engine(
    pipeline: GenerationPipeline, fakes: FakeStages
) -> None:
    fakes.faults["splats"] = FULL
    fakes.faults["drop_caches"] = RuntimeError("CUDA error: an illegal memory access")
    for _ in range(2):
        with pytest.raises(EngineDead, match="lost the device"):
            await pipeline.generate(task("x"))


class _Held:
    """Stands for a tensor that a stage had when memory ran out."""


def test_nothing_of_the_failed_attempt_is_alive_when_caches_are_dropped() -> None:
    held: list[weakref.ref[_Held]] = []
    alive: list[bool] = []

    def work() -> None:
        tensor = _Held()
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    gc.disable()  # It would hide a cycle.
    try:
        with pytest.raises(OutOfMemory):
            attempt("splats", work, lambda: alive.append(held[0]() is not None))
        assert alive == [False]
        assert held[1]() is None
    finally:
        gc.enable()


def test_chunks_are_halved_before_anything_else_is_given_up() -> None:
    sizes: list[int] = []

    def within_100(start: int, stop: int) -> torch.Tensor:
        sizes.append(stop - start)
        if stop - start > 100:
            raise FULL
        return torch.arange(start, stop)

    assert map_in_chunks(within_100, 1000, 400, floor=10).tolist() == list(range(1000))
    assert sizes[:3] == [400, 200, 100]
    assert set(sizes[3:]) == {100}


def test_the_smallest_chunk_that_does_not_fit_is_an_out_of_memory() -> None:
    def never(start: int, stop: int) -> torch.Tensor:
        raise FULL

    with pytest.raises(OutOfMemory, match="chunks of 10"):
        map_in_chunks(never, 1000, 400, floor=10)
