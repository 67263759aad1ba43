"""A recorded day: a miner that pulls from validators by the published rules, in virtual time.

The service, its guard, the pull transport, the rules of the validators and the score log are the
real ones; the engine and the network are not.
"""

import asyncio
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest
from loguru import logger

from generation.scoring.validity import ValidityReport, check
from miner.chain.earnings import EarningsLog
from miner.chain.metagraph import Neuron, Snapshot
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.score.thumbnails import Thumbnails
from miner.service import MinerService
from miner.transports.clocks import SteadyClock
from miner.transports.pull import puller
from miner.transports.pull.calls import NoAnswer, PullAnswer, SubmitAnswer
from miner.transports.pull.puller import PullTransport
from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Selection
from protocol.synapses import Feedback, WireTask
from protocol.tasks import TextTask
from tests.miner.mock_validator.pull_fakes import MINER, make_rules, submission
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import SECONDS, FakeEngine, ball
from tests.support.virtual_time import VirtualLoop, clock

P = ParamSpec("P")
T = TypeVar("T")

BEGIN = 1_750_032_000.0
"""2025-06-16, midnight, UTC: a day that is over whenever the tests run."""

DAY_S = 86_400.0
_ZERO = 1000.0
"""What a `VirtualLoop` begins with."""


class DayValidator:
    """One validator: its rules, and how it judges."""

    def __init__(
        self,
        uid: int,
        score: Callable[[random.Random], float],
        wall: Callable[[], float],
        *,
        tasks: bool = True,
    ) -> None:
        self.neuron = Neuron(
            uid=uid,
            hotkey=f"5Validator{uid}",
            ip=f"10.0.0.{uid}",
            port=8091,
            stake=5000.0,
            validator_permit=True,
        )
        self.rules = make_rules(wall, hotkey=self.neuron.hotkey)
        self.score = score
        self.tasks = tasks
        self.away = (0.0, 0.0)


class DayCalls:
    """The calls of the pull transport, answered by validators of the simulation."""

    def __init__(
        self, validators: list[DayValidator], chance: random.Random, wall: Callable[[], float]
    ) -> None:
        self.clock = SteadyClock(wall, clock)
        self._validators = {each.neuron.hotkey: each for each in validators}
        self._chance = chance

    async def pull(self, validator: Neuron) -> PullAnswer:
        other = self._validators[validator.hotkey]
        if other.away[0] <= self.clock() - BEGIN < other.away[1]:
            await asyncio.sleep(12.0)
            raise NoAnswer("no answer from 10.0.0.9:8091 within 12 s", status=408, reached=True)
        await asyncio.sleep(0.2)
        if not other.tasks:
            return PullAnswer(None, 0.6, 0.0, 0)
        pulled = other.rules.pull(MINER)
        task = pulled.task
        wire = None if task is None else WireTask(type="text", id=task.id, prompt=task.wire)
        return PullAnswer(wire, 0.6, float(pulled.cooldown_until), pulled.violations)

    async def submit(self, validator: Neuron, task: AssignedTask, asset: bytes) -> SubmitAnswer:
        other = self._validators[validator.hotkey]
        assigned = other.rules.assigned(MINER)
        assert assigned is not None
        results = "AAAA" if asset else ""
        verdict = other.rules.submit(
            MINER, submission(assigned[0], results=results, validator=validator.hotkey)
        )
        if verdict is None:
            await asyncio.sleep(2.0)
            score = other.score(self._chance)
            verdict = other.rules.judged(MINER, None if math.isnan(score) else score)
        window = other.rules.window(MINER)
        feedback = Feedback(
            validation_failed=verdict.validation_failed,
            task_fidelity_score=verdict.score,
            average_fidelity_score=other.rules.average(MINER),
            generations_within_the_window=window,
            current_duel_rating=1500.0 + other.neuron.uid,
            current_miner_reward=window * 1500.0,
        )
        return SubmitAnswer(feedback, float(verdict.cooldown_until))

    async def close(self) -> None: ...


class _NoStateFile(PullStateFile):
    """Keeps nothing: a day has 5000 saves."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, MINER)

    def load(self) -> PullState:
        return PullState(hotkey=MINER)

    def save(self, state: PullState) -> None: ...


def record_day(folder: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 18) -> Path:
    """Records a day, and returns the folder of its log, with thumbnails of its last answers."""

    async def inline(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)  # A thread would take time while the loop jumps.

    @partial(monkeypatch.setattr, "tests.support.fakes.check")
    def check_once(cloud: Any, known: list[ValidityReport] = []) -> ValidityReport:  # noqa: B006
        known[:] = known or [check(ball())]
        return known[0]

    logger.disable("miner")  # A day has 20,000 lines that nobody reads.
    monkeypatch.setattr(asyncio, "to_thread", inline)
    monkeypatch.setattr(puller, "POLL_S", 5.0)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(_day(folder, random.Random(seed)))
    logger.enable("miner")
    return folder


class _AllThumbnails(Thumbnails):
    """Waits for its thread, which gets no time to write while the clock of the day jumps."""

    def __call__(self, request: Request, answer: Answer) -> None:
        if answer.cutout is not None:
            self._waiting.put((request.id, answer.cutout))


async def _day(folder: Path, chance: random.Random) -> None:
    loop = asyncio.get_running_loop()

    def wall() -> float:
        return BEGIN + loop.time() - _ZERO  # Also from the thread that writes the log.

    log = ScoreLog(folder, clock=wall, max_mebibytes=1)
    engine = FakeEngine()
    engine.takes_time = True
    thumbnails = _AllThumbnails(folder, keep=10, problems=log.problems)
    service = MinerService(
        [engine], log, budget_s=30.0, margin_s=1.0, on_answer=[thumbnails], clock=clock
    )
    validators = [
        DayValidator(1, lambda chance: chance.gauss(0.82, 0.05), wall),
        DayValidator(2, lambda chance: chance.gauss(0.68, 0.07), wall),
        DayValidator(3, lambda chance: 0.3, wall),
        DayValidator(4, lambda chance: 0.9, wall, tasks=False),
        DayValidator(5, _sometimes_fails, wall),
    ]
    validators[4].away = (9 * 3600.0, 11 * 3600.0)
    chain = StaticChain(*(each.neuron for each in validators))
    transport = PullTransport(
        service,
        chain,
        log,
        calls=DayCalls(validators, chance, wall),  # type: ignore[arg-type]
        selection=Selection(MINER),
        state_file=_NoStateFile(folder / "state.json"),
        monotonic=clock,
    )
    log.write(
        "miner_started",
        version="0.1.0",
        preset="embedded",
        transports=["pull", "http"],
        budget_s=30.0,
        pid=4242,
        netuid=17,
        network="test",
        hotkey=MINER,
        uid=77,
    )
    await service.start()
    await transport.serve()
    others = [
        asyncio.create_task(_load(engine, chance, wall)),
        asyncio.create_task(_callers(service, chance)),
        asyncio.create_task(_epochs(EarningsLog(log, MINER, clock=clock), chance)),
    ]
    await asyncio.sleep(DAY_S)
    for other in others:
        other.cancel()
    await asyncio.wait(others)
    await service.drain()
    await transport.close()
    await service.close()
    thumbnails.close()
    log.write("miner_stopped", exit_code=0, reason="asked to by a signal", uptime_s=DAY_S)
    log.close()


def _sometimes_fails(chance: random.Random) -> float:
    return math.nan if chance.random() < 0.05 else chance.uniform(0.5, 0.95)


async def _load(engine: FakeEngine, chance: random.Random, wall: Callable[[], float]) -> None:
    """The machine is slower in the afternoon, and much too slow for half an hour."""
    while True:
        hour = (wall() - BEGIN) / 3600.0
        slowness = 1.0 + 1.5 * math.exp(-(((hour - 15.0) / 2.5) ** 2))
        slowness = 9.0 if 18.0 <= hour < 18.5 else slowness
        for stage, seconds in SECONDS.items():
            engine.seconds[stage] = seconds * slowness * chance.uniform(0.85, 1.3)
        await asyncio.sleep(60.0)


async def _callers(service: MinerService, chance: random.Random) -> None:
    """A local caller who now and then asks, and sometimes goes away."""
    asked: set[asyncio.Task[Any]] = set()
    try:
        for number in range(10_000):
            await asyncio.sleep(chance.expovariate(1 / 600.0))
            task = TextTask(id=f"local-{number}", prompt="a cube")
            request = Request(task, Caller("local"), "http", clock(), 20.0)
            asked.add(asyncio.create_task(service.handle(request)))
            if chance.random() < 0.1:
                await asyncio.sleep(0.5)
                for request_task in asked:
                    request_task.cancel()
    finally:
        await asyncio.gather(*asked, return_exceptions=True)


async def _epochs(earnings: EarningsLog, chance: random.Random) -> None:
    """The chain is read every two minutes; an epoch has 360 blocks."""
    emission, stake, rivals = 0.8, 100.0, 0.012
    for reading in range(100_000):
        if reading % 36 == 0:
            emission *= chance.uniform(0.9, 1.12)
            stake += emission
        miner = Neuron(
            uid=77,
            hotkey=MINER,
            incentive=emission / 100.0,
            consensus=0.01,
            emission=emission,
            stake=stake,
        )
        others = [Neuron(uid=n, hotkey=f"5R{n}", incentive=rivals / n) for n in range(1, 9)]
        earnings(Snapshot.of([miner, *others], clock(), tempo=360), "")
        await asyncio.sleep(120.0)
