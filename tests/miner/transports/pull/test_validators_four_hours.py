"""Whom to ask next: four simulated hours against the published rules."""

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from miner.chain.metagraph import Neuron
from miner.mock_validator.pull_rules import PullRules, Submission, Verdict
from miner.transports.pull.clocks import ValidatorClock
from miner.transports.pull.validators import Fate, Validators
from tests.miner.mock_validator.pull_fakes import MINER, make_rules, submission
from tests.miner.transports.pull.test_validators import START, make, validator
from tests.support.fakes import Clock

HOURS_4 = 4 * 3600.0


@dataclass
class Counterpart:
    """A validator of the simulation: how it treats us, and its rules by its own clock."""

    neuron: Neuron
    ours: Clock
    dead: bool = False
    validation_s: float = 2.0
    score: float = 0.9
    offset_s: float = 0.0
    dated: bool = True
    accepted: int = 0
    violations: int = 0
    clock: ValidatorClock = field(default_factory=ValidatorClock)
    rules: PullRules = field(init=False)

    def __post_init__(self) -> None:
        self.rules = make_rules(self.theirs, hotkey=self.neuron.hotkey)

    def theirs(self) -> float:
        return self.ours.now + self.offset_s

    def date(self) -> float | None:
        """The date of an answer, as uvicorn makes it: whole seconds, renewed about every second."""
        theirs = self.theirs()
        return math.floor(theirs - theirs % 1.05) if self.dated else None


@dataclass
class Simulation:
    """One generator that makes an object in 10 s, on a clock that jumps from event to event."""

    clock: Clock = field(default_factory=lambda: Clock(START))
    object_s: float = 10.0
    delay_s: float = 0.2

    def run(self, counterparts: list[Counterpart]) -> None:
        policy = make(self.clock)
        others = {each.neuron.hotkey: each for each in counterparts}
        neurons = [each.neuron for each in counterparts]
        ends: list[tuple[float, int, Callable[[], None]]] = []
        order = itertools.count()
        while self.clock.now < START + HOURS_4:
            while ends and ends[0][0] <= self.clock.now:
                heapq.heappop(ends)[2]()
            chosen = policy.choose(neurons)
            if chosen is None:
                wait = policy.wait(neurons)
                times = [self.clock.now + wait] if wait is not None else []
                self.clock.now = min(times + [at for at, _, _ in ends[:1]])
                continue
            settle = self.turn(policy, others[chosen.hotkey])
            if settle is not None:
                heapq.heappush(ends, (settle[0], next(order), settle[1]))

    def turn(
        self, policy: Validators, other: Counterpart
    ) -> tuple[float, Callable[[], None]] | None:
        """Pulls and generates; returns when the validation ends, and what happens then."""
        hotkey = other.neuron.hotkey
        if other.dead:
            self.clock.now += 12.0
            policy.unanswered(hotkey)
            return None
        asked_at = self.clock.now
        self.clock.now += self.delay_s / 2
        pulled, date = other.rules.pull(MINER), other.date()
        other.violations = max(other.violations, pulled.violations)
        self.clock.now += self.delay_s / 2
        moments = {"sent_at": asked_at, "answered_at": self.clock.now}
        other.clock.dated(date, **moments)
        if pulled.task is None:
            until = float(pulled.cooldown_until)
            other.clock.refused(until, pulled.violations, date, **moments)
            policy.without_task(hotkey, other.clock.on_ours(until, self.clock.now))
            return None
        other.clock.granted(pulled.violations)
        policy.assigned(hotkey)
        self.clock.now += self.object_s + self.delay_s
        submitted_at = self.clock.now
        assert other.rules.submit(MINER, submission(pulled.task, validator=hotkey)) is None

        def settle() -> None:
            verdict, now = other.rules.judged(MINER, other.score), self.clock.now
            other.clock.dated(other.date(), sent_at=submitted_at, answered_at=now)
            other.clock.submitted(verdict.cooldown_until)
            fate: Fate = "accepted" if verdict.code == "accepted" else "refused"
            other.accepted += fate == "accepted"
            until = other.clock.on_ours(verdict.cooldown_until, now)
            policy.settled(hotkey, fate, assigned_at=asked_at, cooldown_until=until)

        return self.clock.now + other.validation_s, settle


def counterparts(clock: Clock, count: int, **fields: object) -> list[Counterpart]:
    return [Counterpart(validator(uid), clock, **fields) for uid in range(count)]  # type: ignore[arg-type]


ATTAINABLE = 48
"""Results per validator in four hours, one every 300 s."""


def test_four_hours_with_seven_validators() -> None:
    simulation = Simulation()
    seven = counterparts(simulation.clock, 7)
    simulation.run(seven)
    results = sum(each.accepted for each in seven)
    assert results >= 0.99 * 7 * ATTAINABLE
    assert [each.violations for each in seven] == [0] * 7


def test_four_hours_with_one_dead_one_slow_and_one_that_always_refuses() -> None:
    simulation = Simulation()
    seven = counterparts(simulation.clock, 7)
    dead, slow, refusing, *others = seven
    dead.dead = True
    slow.validation_s = 120.0
    refusing.score = 0.2
    simulation.run(seven)
    results = sum(each.accepted for each in others)
    assert results >= 0.97 * len(others) * ATTAINABLE
    assert slow.accepted >= 0.97 * HOURS_4 // (270 + 130)
    assert refusing.accepted == 0
    assert [each.violations for each in seven] == [0] * 7


def test_when_the_generator_is_the_limit_it_is_never_idle() -> None:
    simulation = Simulation()
    many = counterparts(simulation.clock, 60)
    simulation.run(many)
    results = [each.accepted for each in many]
    assert sum(results) >= 0.99 * HOURS_4 // (10.0 + 2 * simulation.delay_s)
    assert max(results) - min(results) <= 1
    assert max(each.violations for each in many) == 0


@pytest.mark.parametrize("offset_s", [-60.0, -5.0, 5.0, 60.0])
def test_four_hours_with_clocks_that_are_off(offset_s: float) -> None:
    """No violation, and of each turn no more is lost than the margin and the step of the dates."""
    simulation = Simulation()
    seven = counterparts(simulation.clock, 7, offset_s=offset_s)
    simulation.run(seven)
    assert [each.violations for each in seven] == [0] * 7
    assert min(each.accepted for each in seven) >= 0.97 * ATTAINABLE


@pytest.mark.parametrize(("offset_s", "most"), [(-5.0, 3), (-60.0, 6), (5.0, 0), (60.0, 0)])
def test_four_hours_with_clocks_that_are_off_and_answers_without_a_date(
    offset_s: float, most: int
) -> None:
    """Each learning costs few refused pulls, and no minute for every task."""
    simulation = Simulation()
    seven = counterparts(simulation.clock, 7, offset_s=offset_s, dated=False)
    simulation.run(seven)
    assert max(each.violations for each in seven) <= most
    lost_s = abs(offset_s) + 64.0
    assert min(each.accepted for each in seven) >= HOURS_4 // (300.0 + lost_s)


def test_four_hours_with_a_clock_that_is_set_back_and_forth() -> None:
    simulation = Simulation()
    (one,) = counterparts(simulation.clock, 1)
    steps = iter([-3.0, 4.0, -1.5, -30.0, 300.0, -0.5, -2.2] * 10)
    submit = one.rules.submit

    def stepping(hotkey: str, submission: Submission) -> Verdict | None:
        if one.accepted % 6 == 5:
            one.offset_s += next(steps)
        return submit(hotkey, submission)

    one.rules.submit = stepping  # type: ignore[method-assign]
    simulation.run([one])
    assert one.violations <= 2
    assert one.accepted >= 0.9 * ATTAINABLE
