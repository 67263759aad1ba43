"""Latest starts and cancellation act between steps and leave the engine ready."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from generation.engine import Engine
from generation.errors import EngineDead, GenerationError, GenerationStopped
from generation.plan import StepEvent
from generation.presets import preset
from tests.support.fake_stages import STEPS, FakeStages, plan, task


class Clock:
    """Stands still until a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def engine(fakes: FakeStages, clock: Clock) -> AsyncIterator[Engine]:
    engine = fakes.engine(clock=clock)
    yield engine
    assert await engine.close()


def _kinds(events: list[StepEvent]) -> list[tuple[str, str]]:
    return [(event.kind, event.step.stage) for event in events]


async def test_an_asset_that_has_no_time_left_for_its_score_is_returned_without_one(
    fakes: FakeStages, clock: Clock
) -> None:
    engine, events = fakes.engine(preset("embedded"), clock=clock), list[StepEvent]()
    late = plan(engine, task("x"), latest_start=(*(0.0,) * len(STEPS), 5.0))
    made = await engine.run(task("x"), late, seconds_left=4.5, on_event=events.append)
    assert (made.spz, made.score) == (b"spz", None)
    assert "score" not in fakes.names()
    assert (events[-1].kind, events[-1].step.stage) == ("skipped", "score")
    assert await engine.close()


async def test_nothing_starts_after_its_latest_start(engine: Engine, fakes: FakeStages) -> None:
    events: list[StepEvent] = []
    late = plan(engine, task("x"), latest_start=(5.0,) * len(STEPS))
    with pytest.raises(GenerationStopped) as caught:
        await engine.run(task("x"), late, seconds_left=4.5, on_event=events.append)
    assert str(caught.value) == (
        "stopped before prompt: 4.50 s are left and it had to start with at least 5.00 s left; "
        "it waited 0.00 s for lane gpu"
    )
    assert caught.value.stage == "prompt"
    assert fakes.calls == []
    assert _kinds(events) == [("skipped", "prompt")]
    assert events[0].error == caught.value.reason
    # The latest start itself is not too late.
    assert (await engine.run(task("x"), late, seconds_left=5.0)).spz == b"spz"


@pytest.mark.parametrize("last", range(len(STEPS) - 1))
async def test_a_step_that_takes_too_long_stops_the_next(
    engine: Engine, fakes: FakeStages, clock: Clock, last: int
) -> None:
    started: list[str] = []
    events: list[StepEvent] = []

    def listen(event: StepEvent) -> None:
        events.append(event)
        if event.kind == "started":
            started.append(event.step.stage)
            if len(started) == last + 1:
                clock.now = 110.0

    # Eight steps that may start with 8, 7, ... 1 s left.
    chosen = plan(engine, task("x"), latest_start=tuple(map(float, range(len(STEPS), 0, -1))))
    with pytest.raises(GenerationStopped, match=r"0\.\d\d s are left") as caught:
        await engine.run(task("x"), chosen, seconds_left=10.5, on_event=listen)
    assert caught.value.stage == STEPS[last + 1]
    assert fakes.names() == list(STEPS[: last + 1])
    assert list(caught.value.timings) == list(dict.fromkeys(STEPS[: last + 1]))
    assert (events[-1].kind, events[-1].position) == ("skipped", last + 1)
    assert (await engine.run(task("next"), plan(engine, task("next")))).spz == b"spz"


async def test_a_request_that_waits_gives_up_its_place_at_its_latest_start(
    engine: Engine, fakes: FakeStages
) -> None:
    release, events = fakes.hold("prompt"), list[StepEvent]()
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["prompt"].wait, 10)
    hurried = plan(engine, task("second"), latest_start=(9.999,) + (0.0,) * (len(STEPS) - 1))
    # The engine is busy; the request is answered all the same.
    with pytest.raises(GenerationStopped, match=r"waited .* for lane gpu"):
        await engine.run(task("second"), hurried, seconds_left=10.0, on_event=events.append)
    assert _kinds(events) == [("skipped", "prompt")]
    release()
    await first
    assert fakes.drawn == ["first"]


async def test_time_that_passes_before_the_thread_is_free_counts(
    engine: Engine, fakes: FakeStages, clock: Clock
) -> None:
    release = fakes.hold("prompt")
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["prompt"].wait, 10)
    chosen = plan(engine, task("second"), latest_start=(5.0,) * len(STEPS))
    second = asyncio.create_task(engine.run(task("second"), chosen, seconds_left=10.0))
    await asyncio.sleep(0)
    clock.now += 6.0
    release()
    with pytest.raises(GenerationStopped, match=r"4.00 s are left .* waited 6.00 s for lane gpu"):
        await second
    await first
    assert fakes.drawn == ["first"]


async def test_a_cancelled_request_runs_no_further_step_and_reports_the_one_that_runs(
    engine: Engine, fakes: FakeStages, clock: Clock
) -> None:
    release, events = fakes.hold("lift"), list[StepEvent]()
    request = asyncio.create_task(
        engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    )
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    request.cancel()
    # The caller is free at once, though the step still runs.
    with pytest.raises(asyncio.CancelledError):
        await request
    assert _kinds(events)[-1] == ("started", "lift")
    clock.now += 3.0
    release()
    assert (await engine.run(task("next"), plan(engine, task("next")))).spz == b"spz"
    assert fakes.names() == [*STEPS[:6], *STEPS]
    assert _kinds(events)[-1] == ("finished", "lift")
    assert events[-1].ran_s == 3.0


async def test_a_cancelled_request_reports_the_failure_of_the_step_that_runs(
    engine: Engine, fakes: FakeStages
) -> None:
    release, events = fakes.hold("lift"), list[StepEvent]()
    fakes.faults["lift"] = ValueError("bad shape")
    request = asyncio.create_task(
        engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    )
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    release()
    with pytest.raises(GenerationError):
        await engine.run(task("next"), plan(engine, task("next")))
    assert _kinds(events)[-1] == ("failed", "lift")
    assert events[-1].error == "lift failed: ValueError: bad shape"


async def test_a_request_that_is_cancelled_while_it_waits_says_so(
    engine: Engine, fakes: FakeStages
) -> None:
    release, events = fakes.hold("prompt"), list[StepEvent]()
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["prompt"].wait, 10)
    second = asyncio.create_task(
        engine.run(task("second"), plan(engine, task("second")), on_event=events.append)
    )
    await asyncio.sleep(0.01)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert [(e.kind, e.error) for e in events] == [("skipped", "the request was cancelled")]
    release()
    await first
    assert fakes.drawn == ["first"]


async def test_closing_waits_for_the_step_that_runs(engine: Engine, fakes: FakeStages) -> None:
    release = fakes.hold("splats")
    request = asyncio.create_task(engine.run(task("x"), plan(engine, task("x"))))
    assert await asyncio.to_thread(fakes.entered["splats"].wait, 10)
    request.cancel()
    closing = asyncio.create_task(engine.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    release()
    assert await closing


async def test_closing_does_not_wait_for_a_step_that_hangs(
    engine: Engine, fakes: FakeStages
) -> None:
    release = fakes.hold("splats")
    hangs = asyncio.create_task(engine.run(task("hangs"), plan(engine, task("hangs"))))
    assert await asyncio.to_thread(fakes.entered["splats"].wait, 10)
    waits = asyncio.create_task(engine.run(task("waits"), plan(engine, task("waits"))))
    await asyncio.sleep(0.01)
    assert not await engine.close(limit_s=0.01)
    with pytest.raises(EngineDead, match="gpu lane is closed"):
        await waits
    release()
    with pytest.raises(EngineDead, match="cpu lane is closed"):
        await hangs


async def test_after_closing_nothing_runs(fakes: FakeStages) -> None:
    engine = fakes.engine()
    chosen = plan(engine, task("x"))
    assert await engine.close()
    with pytest.raises(RuntimeError, match="after close"):
        await engine.run(task("x"), chosen)
