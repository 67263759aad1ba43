"""A miner restarted with another 3D back end: what it knows of the machine, and who goes first."""

import asyncio
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path

import pytest

from generation.engine import Engine
from generation.presets import preset
from generation.settings import BackEndName, LiftSettings, RungSettings, ScoringSettings
from generation.stage import StepContext
from miner.engines.local import LocalEngine
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from protocol.tasks import TextTask
from tests.miner.conftest import MakeBench
from tests.support.fake_stages import FakeStages
from tests.support.fakes import SECONDS, FakeEngine
from tests.support.service_bench import Bench
from tests.support.virtual_time import (
    VirtualLoop,
    in_virtual_time,
    lanes_take_virtual_time,
    threads_take_no_time,
)

BOTH = [("triposr", "triposplat"), ("triposplat", "triposr")]


def engine_of(back_end: BackEndName, seconds: Mapping[str, float] = SECONDS) -> FakeEngine:
    """An engine whose kept estimates are told apart as the miner's own are."""
    engine = FakeEngine(seconds, back_end=back_end)
    engine.machine = LocalEngine(engine.settings).machine
    return engine


def seconds_of(engine: FakeEngine, level: int = 0) -> float:
    """What a text task takes by the engine's own numbers, at the best level unless given."""
    task = TextTask(id="t", prompt="a blue cube")
    return sum(engine.seconds[step.stage] for step in engine.route(task, engine.ladder[level]))


async def predicted(bench: Bench, name: str) -> float:
    answer = await bench.handle(name)
    assert answer.predicted_s is not None
    return answer.predicted_s


@pytest.mark.parametrize(("before", "after"), BOTH)
@in_virtual_time
async def test_what_one_back_end_took_is_not_used_for_the_other_on_the_same_files(
    make_bench: MakeBench, before: BackEndName, after: BackEndName
) -> None:
    """The first one's every stage takes longer, those that both have included."""
    slow = {stage: 1.8 * seconds for stage, seconds in SECONDS.items()}
    first = make_bench(engine_of(before, slow))
    await first.service.start()
    for number in range(20):
        await first.handle(str(number))
    assert await predicted(first, "last") == pytest.approx(seconds_of(first.engine), rel=0.01)
    await first.service.close()

    second = make_bench(engine_of(after))
    assert second.file._file.path.is_file()
    await second.service.start()
    assert await predicted(second, "own") == pytest.approx(seconds_of(second.engine), rel=1e-6)
    warmed_up = second.events("warmed_up")[-1]["seconds"]
    assert ("flow" in warmed_up) == (after == "triposplat")
    assert ("lift:triposr" in warmed_up) == (after == "triposr")
    for number in range(20):
        await second.handle(f"again {number}")
    await second.service.close()

    # And back: what is in the file now is the other's.
    third = make_bench(engine_of(before))
    await third.service.start()
    assert await predicted(third, "back") == pytest.approx(seconds_of(third.engine), rel=1e-6)
    await third.service.close()

    # Without a switch, it is used beside the warm-up.
    fourth = make_bench(engine_of(before, slow))
    await fourth.service.start()
    assert await predicted(fourth, "known") < 0.9 * seconds_of(fourth.engine)


@in_virtual_time
async def test_a_restart_with_the_other_back_end_admits_by_its_own_numbers(
    make_bench: MakeBench,
) -> None:
    slow = SECONDS | {"flow": 2.0}
    first = make_bench(engine_of("triposr", slow))
    await first.service.start()
    assert (await first.handle("a", allowed_s=15.0)).outcome == "completed"
    await first.service.close()

    second = make_bench(engine_of("triposplat", slow))
    await second.service.start()
    asked = await second.handle("b", allowed_s=15.0)
    assert (asked.outcome, asked.reason_code) == ("dropped", "predicted_late")
    assert asked.predicted_s is not None
    assert asked.predicted_s == pytest.approx(seconds_of(second.engine, level=-1))
    assert (await second.handle("c", allowed_s=30.0)).outcome == "completed"


ASSUMED: Mapping[str, float] = {
    **{"prompt": 0.01, "denoise": 0.03, "decode": 0.01, "cutout": 0.01},
    **{"prepare": 0.02, "features": 0.08, "flow": 0.1, "gaussians": 0.3},
    **{"splats": 0.06, "encode": 0.03},
}
"""Seconds by stage that the tests below assume; about what a step of `flow` takes on an H100, the
rest guessed."""
MARGIN_S = 0.1
LATE_S, EARLY_S, LATER_S = 15.0, 10.0, 19.0
"""What callers allow: the first one, one that goes before it, one that goes after it."""


class SplatEngine(Engine):
    """An engine for the service."""

    name = "splat"
    machine = "this one"


class Machine:
    """A service on a real engine with the stages of TripoSplat, in virtual time.

    Attributes:
        calls: (task id, stage, moment) in the order in which steps started.
    """

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.calls: list[tuple[str, str, float]] = []
        stages = FakeStages()
        stages.on_call = self._take_time
        base = preset("embedded")
        settings = base.model_copy(
            update={
                "text_to_image": base.text_to_image.model_copy(update={"steps": 2}),
                "lift": LiftSettings(backend="triposplat"),
                "rungs": (RungSettings(name="half", lift_steps=10),),
                "scoring": ScoringSettings(),
            }
        )
        engine = SplatEngine(
            settings,
            functions=stages.functions(),
            remembers=stages.remembers,
            progress=False,
            clock=loop.time,
        )
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [engine], self.log, budget_s=20.0, margin_s=MARGIN_S, clock=loop.time
        )

    def ask(self, name: str, *, allowed_s: float) -> "asyncio.Task[Answer]":
        task = TextTask(id=name, prompt=f"thing {name}")
        request = Request(task, Caller(f"of {name}"), "axon", self.loop.time(), allowed_s)
        return asyncio.create_task(self.service.handle(request))

    async def until_flowing(self, name: str, steps: int) -> None:
        """Waits until a task is in this step of `flow`."""
        while sum(call[:2] == (name, "flow") for call in self.calls) < steps:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.service.drain()
        await self.service.close()
        self.log.close()

    def _take_time(self, stage: str, context: StepContext) -> None:
        self.calls.append((context.task.id, stage, self.loop.time()))
        self.loop.hold_thread(ASSUMED[stage])


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes_take_virtual_time(monkeypatch)
    threads_take_no_time(monkeypatch)


@pytest.mark.usefixtures("virtual")
@in_virtual_time
async def test_a_caller_with_less_time_goes_between_two_steps_of_anothers_shape(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path)
    await machine.service.start()
    first = machine.ask("a", allowed_s=LATE_S)
    await machine.until_flowing("a", 5)
    second, asked_at = machine.ask("b", allowed_s=EARLY_S), machine.loop.time()
    answers = await asyncio.gather(first, second)
    await machine.close()
    assert [answer.outcome for answer in answers] == ["completed"] * 2
    calls = [call for call in machine.calls if call[0] in ("a", "b")]
    started = next(index for index, call in enumerate(calls) if call[0] == "b")
    # At most the step that ran is waited for.
    assert calls[started][2] - asked_at < 1.5 * ASSUMED["flow"]
    # From then on the other one's steps run only while the newcomer is not in the lane.
    own = [index for index, call in enumerate(calls) if call[:2] == ("b", "flow")]
    assert {call[0] for call in calls[own[0] : own[-1]]} == {"b"}
    assert len(own) == 20
    # The one that was overtaken goes on where it was.
    assert sum(call[:2] == ("a", "flow") for call in calls) == 20
    assert calls[-1][:2] == ("a", "encode")


@pytest.mark.usefixtures("virtual")
@in_virtual_time
async def test_a_caller_with_more_time_waits_for_all_of_anothers_steps(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    await machine.service.start()
    first = machine.ask("a", allowed_s=LATE_S)
    await machine.until_flowing("a", 5)
    second = machine.ask("b", allowed_s=LATER_S)
    answers = await asyncio.gather(first, second)
    await machine.close()
    assert [answer.outcome for answer in answers] == ["completed"] * 2
    calls = [call for call in machine.calls if call[0] in ("a", "b")]
    before = list(takewhile(lambda call: call[0] == "a", calls))
    assert sum(stage == "flow" for _, stage, _ in before) == 20
    # It starts as soon as the other has left the lane: `encode` needs no device.
    last = next(call for call in before if call[1] == "splats")
    left_at = last[2] + ASSUMED["splats"]
    assert calls[len(before)][2] == pytest.approx(left_at, abs=0.5 * ASSUMED["encode"])
