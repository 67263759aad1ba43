"""Whom to ask next: four simulated hours against the published rules."""

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from miner.chain.metagraph import Neuron
from miner.mock_validator.pull_rules import PullRules
from miner.transports.pull.validators import Fate, Validators
from tests.miner.mock_validator.pull_fakes import MINER, make_rules, submission
from tests.miner.transports.pull.test_validators import START, make, validator
from tests.support.fakes import Clock

HOURS_4 = 4 * 3600.0


@dataclass
class Counterpart:
    """A validator of the simulation: its rules, and how it treats us."""

    neuron: Neuron
    rules: PullRules
    dead: bool = False
    validation_s: float = 2.0
    score: float = 0.9
    accepted: int = 0
    violations: int = 0


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
        self.clock.now += self.delay_s
        pulled = other.rules.pull(MINER)
        other.violations = max(other.violations, pulled.violations)
        if pulled.task is None:
            policy.without_task(hotkey, pulled.cooldown_until)
            return None
        policy.assigned(hotkey)
        self.clock.now += self.object_s + self.delay_s
        assert other.rules.submit(MINER, submission(pulled.task, validator=hotkey)) is None

        def settle() -> None:
            verdict = other.rules.judged(MINER, other.score)
            fate: Fate = "accepted" if verdict.code == "accepted" else "refused"
            other.accepted += fate == "accepted"
            policy.settled(
                hotkey, fate, assigned_at=asked_at, cooldown_until=verdict.cooldown_until
            )

        return self.clock.now + other.validation_s, settle


def counterparts(clock: Clock, count: int, **fields: object) -> list[Counterpart]:
    neurons = [validator(uid) for uid in range(count)]
    return [
        Counterpart(neuron, make_rules(clock, hotkey=neuron.hotkey), **fields)  # type: ignore[arg-type]
        for neuron in neurons
    ]


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
