"""The front's side of a link against a real host and a real engine, in virtual time."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from generation.errors import GenerationError
from generation.plan import Plan, StepEvent
from generation.result import Generation
from generation.stage import StepContext
from miner.engines import EngineLost
from miner.engines.host import BEAT_S, ORPHANED_S
from miner.engines.joining import identity_of
from miner.engines.link import FarProcess, LinkLost
from miner.engines.remote import HAND_OVER, SILENT_S
from miner.engines.wire import Ended, SetupFault
from protocol.errors import SetupError
from protocol.tasks import Task, TextTask
from tests.support.fake_stages import FakeStages
from tests.support.far_engines import FarEngine, far_settings
from tests.support.virtual_time import (
    VirtualLoop,
    clock,
    in_virtual_time,
    lanes_take_virtual_time,
    threads_take_no_time,
)

TASK = TextTask(id="t", prompt="a red car")
STEP_S = 0.1


@pytest.fixture(autouse=True)
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes_take_virtual_time(monkeypatch)
    threads_take_no_time(monkeypatch)


def stages_in_time(seconds: float = STEP_S) -> FakeStages:
    loop: Any = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    stages = FakeStages()

    def take(stage: str, context: StepContext) -> None:
        loop.hold_thread(seconds)

    stages.on_call = take
    return stages


async def started(**values: Any) -> FarEngine:
    engine = FarEngine(clock=asyncio.get_running_loop().time, **values)
    await engine.start()
    await engine.warm_up()
    return engine


class Run:
    """A run of a text task, and what it reported."""

    def __init__(self, engine: FarEngine, task: Task = TASK, **values: Any) -> None:
        self.events: list[StepEvent] = []
        self.made: list[Generation] = []
        steps = engine.route(task, engine.ladder[0])
        self.plan = replace(Plan(engine.ladder[0], steps), **values.pop("plan", {}))
        self.began = clock()
        self.running = asyncio.ensure_future(
            engine.run(
                task,
                self.plan,
                start=None,
                seconds_left=values.get("seconds_left", 30.0),
                turn=(1.0, 1),
                on_event=self.events.append,
                on_made=self.made.append,
            )
        )

    def kinds(self) -> list[tuple[str, str]]:
        return [(event.step.stage, event.kind) for event in self.events]

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(10_000):
            if condition():
                return
            await asyncio.sleep(0.001)
        raise AssertionError(self.kinds())


@in_virtual_time
async def test_every_step_is_reported_as_it_happens_and_the_way_back_is_the_last_one() -> None:
    engine = await started(stages=stages_in_time())
    run = Run(engine)
    await run.until(lambda: ("prompt", "started") in run.kinds())
    assert len(run.events) == 1, "nothing is reported before it happens"
    made = await run.running
    assert made.spz == b"spz"
    steps = [step.stage for step in run.plan.steps]
    assert steps[-1] == HAND_OVER
    expected = [(stage, kind) for stage in steps for kind in ("started", "finished")]
    assert run.kinds() == expected
    assert [event.position for event in run.events[::2]] == list(range(len(steps)))
    await engine.close()


@in_virtual_time
async def test_the_way_back_takes_what_the_engine_did_not() -> None:
    engine = await started(stages=stages_in_time(), delay_s=0.25)
    run = Run(engine)
    made = await run.running
    way = run.events[-1]
    assert way.step.cost_key == f"hand_over:{engine.ladder[0].gaussians}"
    # There and back; and what has just been asked for comes back first.
    assert 0.5 <= way.ran_s <= 0.76
    stages = sum(made.timings.values())
    assert clock() - run.began == pytest.approx(stages + way.ran_s, abs=0.01)
    await engine.close()


@in_virtual_time
async def test_the_warm_up_knows_the_key_of_every_step() -> None:
    engine = FarEngine(clock=asyncio.get_running_loop().time, settings=far_settings("embedded"))
    await engine.start()
    seconds = await engine.warm_up()
    for output in ("splats", "mesh"):
        for step in engine.route(TASK, engine.ladder[0], output):
            assert step.cost_key in seconds, step
    for step in engine.route(TASK, engine.ladder[0], part="picture"):
        assert step.cost_key in seconds, step
    await engine.close()


@in_virtual_time
async def test_only_durations_cross_and_the_engine_gives_up_by_them() -> None:
    engine = await started(stages=stages_in_time())
    count = len(engine.route(TASK, engine.ladder[0]))
    run = Run(engine, seconds_left=1.0, plan={"latest_start": (0.85,) * count})
    with pytest.raises(Exception, match="stopped before"):
        await run.running
    (order,) = engine.link.orders
    assert order.seconds_left == 1.0
    assert len(order.plan.steps) == len(order.plan.latest_start) == count - 1
    assert run.kinds()[:3] == [
        ("prompt", "started"),
        ("prompt", "finished"),
        ("denoise", "started"),
    ]
    await engine.close()


@in_virtual_time
async def test_the_object_before_its_score_arrives_at_once_and_then_only_the_score() -> None:
    stages = stages_in_time()
    engine = await started(stages=stages, settings=far_settings("embedded"))
    release = stages.hold("score")
    run = Run(engine)
    await run.until(lambda: run.made)
    assert ("score", "finished") not in run.kinds()
    assert run.made[0].score is None
    release()
    made = await run.running
    assert made.score is not None
    assert made.cloud is run.made[0].cloud, "it has not come a second time"
    assert run.kinds()[-2:] == [(HAND_OVER, "started"), (HAND_OVER, "finished")]
    await engine.close()


@in_virtual_time
async def test_a_run_goes_on_without_a_score_that_fails() -> None:
    stages = stages_in_time()
    engine = await started(stages=stages, settings=far_settings("embedded"))
    stages.faults["score"] = GenerationError("no network")
    run = Run(engine)
    made = await run.running
    assert made.score is None
    assert ("score", "failed") in run.kinds()
    assert run.kinds()[-1] == (HAND_OVER, "finished")
    await engine.close()


@in_virtual_time
async def test_a_failure_is_raised_as_it_was() -> None:
    stages = stages_in_time()
    engine = await started(stages=stages)
    stages.faults["lift"] = GenerationError("a fault")
    run = Run(engine)
    with pytest.raises(GenerationError, match="a fault") as failed:
        await run.running
    assert failed.value.timings["prompt"] > 0.0
    assert run.kinds()[-1] == ("lift", "failed")
    await engine.close()


@in_virtual_time
async def test_a_run_that_is_cancelled_starts_nothing_more_and_still_reports_its_step() -> None:
    engine = await started(stages=stages_in_time(1.0), delay_s=0.01)
    run = Run(engine)
    await run.until(lambda: ("denoise", "started") in run.kinds())
    run.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run.running
    await asyncio.sleep(5.0)
    assert run.kinds() == [
        *(("prompt", "started"), ("prompt", "finished")),
        *(("denoise", "started"), ("denoise", "finished")),
    ]
    assert engine._now is not None
    assert not engine._now.runs, "nothing is kept of it"
    await engine.close()


@in_virtual_time
async def test_nothing_is_kept_of_a_run_that_is_cancelled_as_its_result_arrives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = await started(stages=stages_in_time())
    run = Run(engine)
    now = engine._now
    assert now is not None
    take = engine._end

    def end_and_cancel(process: FarProcess, ended: Ended) -> None:
        take(process, ended)
        run.running.cancel()

    monkeypatch.setattr(engine, "_end", end_and_cancel)
    with pytest.raises(asyncio.CancelledError):
        await run.running
    assert not now.runs
    await engine.close()


@in_virtual_time
async def test_a_run_that_is_cancelled_on_its_way_back_ends_that_step() -> None:
    """Otherwise the front would take it for a step that hangs."""
    engine = await started(stages=stages_in_time(), delay_s=0.2)
    run = Run(engine)
    link = engine.link
    await run.until(lambda: link.host._runs)
    await run.until(lambda: not link.host._runs)  # Its result has been sent.
    await run.until(lambda: run.kinds()[-1:] == [(HAND_OVER, "started")] or run.running.done())
    if not run.running.done():
        run.running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.running
    assert run.kinds()[-1][0] == HAND_OVER
    assert run.kinds()[-1][1] in ("failed", "finished")
    await engine.close()


@in_virtual_time
async def test_when_the_process_ends_all_that_it_had_ends_and_the_front_is_told_once() -> None:
    engine = await started(stages=stages_in_time(1.0))
    reasons: list[str] = []
    engine.on_lost = reasons.append
    runs = [Run(engine), Run(engine)]
    await runs[0].until(lambda: runs[0].events)
    engine.link.die()
    for run in runs:
        with pytest.raises(EngineLost, match="the process was killed"):
            await run.running
    assert reasons == ["the process was killed"]
    told = [len(run.events) for run in runs]
    await asyncio.sleep(5.0)
    assert [len(run.events) for run in runs] == told, "nothing follows from it"
    with pytest.raises(EngineLost):
        await Run(engine).running


@in_virtual_time
async def test_an_idle_engine_that_ends_is_noticed_at_once() -> None:
    engine = await started()
    reasons: list[str] = []
    engine.on_lost = reasons.append
    await asyncio.sleep(100.0)
    assert not reasons
    engine.link.die()
    await asyncio.sleep(0.001)
    assert reasons == ["the process was killed"]


@in_virtual_time
async def test_an_engine_that_answers_no_more_is_lost_and_its_process_is_ended() -> None:
    engine = await started()
    reasons: list[str] = []
    engine.on_lost = reasons.append
    engine.link.silent = True
    await asyncio.sleep(SILENT_S - 0.1)
    assert not reasons
    await asyncio.sleep(BEAT_S + 0.2)
    assert reasons == [f"it has not answered for {SILENT_S:.0f} s"]
    assert engine.link.killed


@in_virtual_time
async def test_a_host_whose_front_is_gone_ends_itself() -> None:
    engine = await started()
    link = engine.link
    assert engine._now is not None
    assert engine._now.listening is not None
    engine._now.listening.cancel()
    await asyncio.sleep(ORPHANED_S - 1.0)
    assert not link.lost.done()
    await asyncio.sleep(2.0)
    assert link.lost.done()


@in_virtual_time
async def test_it_can_be_started_again_in_a_new_process() -> None:
    engine = await started(stages=stages_in_time())
    engine.link.die()
    await asyncio.sleep(0.01)
    await engine.start()
    await engine.warm_up()
    assert len(engine.links) == 2
    assert (await Run(engine).running).spz == b"spz"
    await engine.close()
    assert engine.link.killed


@in_virtual_time
async def test_an_engine_of_another_version_is_refused_and_its_process_ended() -> None:
    engine = FarEngine(clock=asyncio.get_running_loop().time)
    make: Callable[[], Any] = engine._make
    here = identity_of(engine.settings.model_dump_json(), None)

    def other() -> Any:
        link = make()
        link.identity = replace(here, version="0.0.1")
        return link

    engine._make = other
    with pytest.raises(SetupError, match=r"engine far on here cannot join: splat-miner 0\.0\.1"):
        await engine.start()
    assert engine.link.killed
    assert engine.link.host._engine is None, "nothing was loaded"


@in_virtual_time
async def test_what_the_other_side_lacks_is_raised_with_its_fix() -> None:
    engine = FarEngine(clock=asyncio.get_running_loop().time)
    make: Callable[[], Any] = engine._make

    def lacking() -> Any:
        link = make()
        link.identity = SetupFault("no weights there", "fetch them there")
        return link

    engine._make = lacking
    with pytest.raises(SetupError, match="no weights there") as lacks:
        await engine.start()
    assert lacks.value.fix == "fetch them there"


@in_virtual_time
async def test_a_process_that_ends_in_its_warm_up_is_a_reason_not_to_start() -> None:
    engine = FarEngine(clock=asyncio.get_running_loop().time)
    await engine.start()

    async def dies() -> Any:
        engine.link.die()
        raise LinkLost("killed")

    link: Any = engine.link
    link.warm_up = dies
    with pytest.raises(SetupError, match="engine far ended while it started: killed"):
        await engine.warm_up()
    assert engine.link.killed


@in_virtual_time
async def test_the_front_knows_which_prompts_the_engine_remembers() -> None:
    stages = stages_in_time()
    engine = await started(stages=stages)

    def key() -> str:
        return engine.route(TASK, engine.ladder[0])[0].cost_key

    assert key() == "prompt:new"
    await Run(engine).running
    assert key() == "prompt:remembered"
    stages.drawn.clear()  # Memory ran out, and the caches were dropped.
    await asyncio.sleep(2 * BEAT_S)
    assert key() == "prompt:new"
    await Run(engine).running
    engine.link.die()
    await asyncio.sleep(0.01)
    assert key() == "prompt:new", "the next process remembers nothing"
