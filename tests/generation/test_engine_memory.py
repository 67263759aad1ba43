"""Running out of memory costs caches first, then that request, and never the engine."""

import gc
import weakref
from collections.abc import AsyncIterator

import pytest
import torch

from generation.engine import Engine
from generation.errors import EngineDead, OutOfMemory
from generation.lift.triposr.chunking import map_in_chunks
from generation.plan import StepEvent
from generation.recovery import attempt
from generation.stage import StepContext
from tests.support.fake_stages import STAGES, STEPS, FakeStages, plan, task

FULL = torch.OutOfMemoryError("tried to allocate 2 GiB")


@pytest.fixture
async def engine(fakes: FakeStages) -> AsyncIterator[Engine]:
    engine = fakes.engine()
    yield engine
    assert await engine.close()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_step_that_fits_without_caches_is_done_again(
    engine: Engine, fakes: FakeStages, stage: str
) -> None:
    events: list[StepEvent] = []
    fakes.faults[stage], fakes.cures = FULL, True
    result = await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert result.spz == b"spz"
    assert (len(fakes.calls), fakes.drops) == (len(STEPS) + 1, 1)
    assert [event.step.stage for event in events if event.retried] == [stage]


async def test_a_retried_step_counts_with_both_attempts(fakes: FakeStages) -> None:
    now = 0.0

    def take_two_seconds(stage: str, context: StepContext) -> None:
        nonlocal now
        now += 2.0

    fakes.on_call = take_two_seconds
    engine = fakes.engine(clock=lambda: now)
    fakes.faults["splats"], fakes.cures = FULL, True
    result = await engine.run(task("x"), plan(engine, task("x")))
    assert (result.timings["lift"], result.timings["splats"]) == (2.0, 4.0)
    assert await engine.close()


async def test_a_step_that_does_not_fit_fails_its_request_alone(
    engine: Engine, fakes: FakeStages
) -> None:
    events: list[StepEvent] = []
    fakes.faults["splats"] = FULL
    with pytest.raises(OutOfMemory, match="splats ran out of memory"):
        await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert (fakes.names().count("splats"), fakes.drops) == (2, 1)
    assert (events[-1].kind, events[-1].retried) == ("failed", True)
    fakes.faults.clear()
    assert (await engine.run(task("next"), plan(engine, task("next")))).spz == b"spz"


async def test_other_errors_are_not_tried_again(engine: Engine, fakes: FakeStages) -> None:
    fakes.faults["splats"] = ValueError("bad shape")
    with pytest.raises(Exception, match="bad shape"):
        await engine.run(task("x"), plan(engine, task("x")))
    assert (fakes.names().count("splats"), fakes.drops) == (1, 0)


async def test_a_device_lost_while_caches_are_dropped_ends_the_engine(
    engine: Engine, fakes: FakeStages
) -> None:
    fakes.faults["splats"] = FULL
    fakes.faults["drop_caches"] = RuntimeError("CUDA error: an illegal memory access")
    for _ in range(2):
        with pytest.raises(EngineDead, match="lost the device"):
            await engine.run(task("x"), plan(engine, task("x")))


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
