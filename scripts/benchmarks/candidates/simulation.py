"""Four hours of a miner that pulls, in virtual time.

The gate, the candidates, the scheduler with its guard, the choice of the validator and the
validators' rules are the real ones; the network, the engine and the scores are not.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import sqrt
from random import Random
from statistics import NormalDist

from miner.chain.metagraph import Neuron
from miner.mock_validator.pull_rules import PullRules, Submission
from miner.mock_validator.tasks import TrialTask
from miner.request import ActiveRequest, Caller, Request
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import DeliveryTimes, Estimates
from miner.scheduling.gate import Gate, GateLimits, Pair
from miner.scheduling.scheduler import Scheduler
from miner.transports.pull.validators import Fate, Selection, Validators
from protocol.consent import encode_signature
from protocol.tasks import ImageTask, TextTask
from scripts.benchmarks.guard.policies import make_scheduler
from scripts.benchmarks.guard.scenarios import PICTURE, Scenario, Truth, card
from scripts.benchmarks.guard.simulation import ENGINE, Clock, Machine, run_scheduler

HOURS_4 = 4 * 3600.0
THRESHOLD = 0.6
SCORER = "simulated"
MINER = "5Miner"

PULL_S, SUBMIT_S, VALIDATION_S = 0.2, 0.6, 2.0
"""Seconds of a pull, of an upload, and of a validator's validation."""

_BEGIN = 1_800_000_000.0
_ALLOWED_S = 31.0
"""Seconds after its receipt at which a request surely has its answer, if it gets one."""


@dataclass(frozen=True)
class World:
    """What tasks, scores and validators are like.

    Attributes:
        pass_rate: Share of first objects whose true score is at least the threshold.
        correlation: Of the true scores of two candidates of one task.
        error: Standard deviation of the scorer's error, drawn again for each candidate.
        bias: What the scorer says too much, on average.
        spread: Standard deviation of true scores. They are normal around the mean that gives the
            pass rate.
        image_share: Share of image tasks, which have one candidate.
        validators: From which the miner pulls; each has a cooldown of its own.
        hours: Length of the simulation.
    """

    pass_rate: float = 0.42
    correlation: float = 0.0
    error: float = 0.05
    bias: float = 0.0
    spread: float = 0.12
    image_share: float = 0.0
    validators: int = 1
    hours: float = 4.0


@dataclass(frozen=True)
class Policy:
    """What the miner does.

    Attributes:
        name: As tables call it.
        gated: Whether the gate may hold results back.
        candidates: Of a text task, at most.
    """

    name: str
    gated: bool
    candidates: int


POLICIES = (
    Policy("always submit", False, 1),
    Policy("gate", True, 1),
    Policy("best of 2", True, 2),
    Policy("best of 3", True, 3),
    Policy("best of 10", True, 10),
)
DEFAULT = Policy("best of 32", True, 32)
"""The default of `--candidates.max`."""


@dataclass
class Result:
    """What became of the tasks.

    Attributes:
        accepted: Results that validators accepted.
        refused: Results below the threshold.
        empty: Results that the gate held back, or that were not made in time.
        probes: Results below the limit that were submitted to learn from them.
        candidates: Objects made.
        slowest_s: From an assignment to the end of its validation, at most.
        margin: Of the gate at the end.
    """

    accepted: int = 0
    refused: int = 0
    empty: int = 0
    probes: int = 0
    candidates: int = 0
    slowest_s: float = 0.0
    margin: float = 0.0


class Scores:
    """True scores of candidates, and what the scorer predicts; the same for all policies."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._mean = THRESHOLD - world.spread * NormalDist().inv_cdf(1.0 - world.pass_rate)

    def true(self, task: str, number: int) -> float:
        """Returns the score that a validator gives to a candidate of a task."""
        shared = self._normal(task, "task")
        own = self._normal(task, f"object {number}")
        rho = self._world.correlation
        return self._mean + self._world.spread * (sqrt(rho) * shared + sqrt(1.0 - rho) * own)

    def predicted(self, task: str, number: int) -> float:
        """Returns what the scorer says of the candidate."""
        wrong = self._world.error * self._normal(task, f"error {number}")
        return self.true(task, number) + self._world.bias + wrong

    def _normal(self, *names: str) -> float:
        return Random(" ".join((str(self._seed), *names))).gauss(0.0, 1.0)


def simulate(world: World, policy: Policy, seed: int, *, card_name: str = "gpu80") -> Result:
    """Runs the miner through the hours.

    Args:
        world: What it meets.
        policy: What it does.
        seed: Of scores, tasks and stage times.
        card_name: The machine: see `scripts.benchmarks.guard.scenarios.card`.
    """
    machine = card(card_name, scored=True)
    delivery = DeliveryTimes()
    limits = CandidateLimits(max=policy.candidates)
    scenario = Scenario("pull")
    puller = _Puller(world, policy, seed)

    def make(clock: Clock) -> Scheduler:
        estimates = Estimates(clock)
        estimates.set_prior(ENGINE, dict(machine.medians))
        puller.connect(clock)
        return make_scheduler(machine, clock, estimates, delivery=delivery, candidates=limits)

    run_scheduler(
        make,
        (),
        machine.lanes,
        Truth(scenario, machine, seed),
        observe_delivery=delivery.observe,
        worth=puller.worth,
        watch=lambda scheduler, request, now: puller.made(request),
        traffic=puller.begin,
    )
    puller.result.margin = puller.gate.calibration(SCORER).margin
    return puller.result


@dataclass
class _Task:
    """A task from its assignment to its end."""

    neuron: Neuron
    task: TrialTask
    asked_at: float
    active: ActiveRequest | None = None
    submitted: bool = False


@dataclass
class _Puller:
    """Asks validators one at a time, and hands in what the gate lets pass."""

    world: World
    policy: Policy
    seed: int
    result: Result = field(default_factory=Result)

    def __post_init__(self) -> None:
        self.gate = Gate(GateLimits(threshold=THRESHOLD, enabled=self.policy.gated))
        self._scores = Scores(self.world, self.seed)
        self._tasks: dict[str, _Task] = {}
        self._numbers = count()
        self._generating = False
        self._alarms: set[float] = set()
        self._neurons = [
            Neuron(
                uid=uid,
                hotkey=f"5V{uid}",
                ip="10.0.0.1",
                port=8091,
                stake=5000.0,
                validator_permit=True,
            )
            for uid in range(self.world.validators)
        ]

    def connect(self, clock: Clock) -> None:
        """Gives it the clock of the simulation."""
        self._clock = clock

        def wall() -> float:
            return _BEGIN + clock.now

        self._wall = wall
        self._validators = Validators(Selection(MINER), clock=wall)
        self._rules = {
            neuron.hotkey: PullRules(
                neuron.hotkey,
                registered=lambda hotkey: True,
                verify=lambda hotkey, payload, signature: True,
                next_task=self._next_task,
                clock=wall,
            )
            for neuron in self._neurons
        }

    def begin(self, machine: Machine, arrive: Callable[[Request], None]) -> None:
        """Pulls for the first time."""
        self._machine, self._arrive = machine, arrive
        self._look()

    def worth(self, active: ActiveRequest) -> float:
        """Returns what the scorer says of an object; every picture is rated alike."""
        request = (active.parent or active).request
        self._tasks[request.id].active = active.parent or active
        if not active.group:
            return self._scores.predicted(request.task.id, 0)
        if active.group[0].state == "drawing":
            return 0.0
        return self._scores.predicted(request.task.id, active.group[0].number)

    def made(self, request: Request) -> None:
        """Hands in the best candidate of a task, or an empty result."""
        task = self._tasks[request.id]
        candidates = task.active.candidates if task.active is not None else None
        if task.submitted or candidates is None:
            return
        best = candidates.best
        predicted = best.score or 0.0
        self.result.candidates += candidates.made
        verdict = self.gate.judge(predicted, SCORER, request.threshold)
        self.result.probes += verdict.probe
        true = self._scores.true(task.task.id, best.number)
        self._submit(task, true if verdict.passed else None, predicted, probe=verdict.probe)

    def _look(self) -> None:
        """Asks a validator, or comes back when one may be asked."""
        now = self._clock.now
        if self._generating or now >= self.world.hours * 3600.0:
            return
        chosen = self._validators.choose(self._neurons)
        if chosen is not None:
            self._generating = True
            self._machine.at(now + PULL_S, lambda: self._pulled(chosen, now))
            return
        wait = self._validators.wait(self._neurons)
        # Without a time, all of them judge a result, and its end looks again.
        if wait is not None and now + wait not in self._alarms:
            self._alarms.add(now + wait)
            self._machine.at(now + wait + 1e-3, self._look)

    def _pulled(self, neuron: Neuron, asked_at: float) -> None:
        pulled = self._rules[neuron.hotkey].pull(MINER)
        if pulled.task is None:
            self._validators.without_task(neuron.hotkey, float(pulled.cooldown_until))
            self._generating = False
            self._look()
            return
        self._validators.assigned(neuron.hotkey)
        wire = pulled.task
        task: TextTask | ImageTask = TextTask(id=wire.id, prompt=wire.wire)
        if wire.kind == "image":
            task = ImageTask(id=wire.id, image=PICTURE)
        caller = Caller(neuron.hotkey)
        # Stage times are drawn by the request's id.
        request = Request(task, caller, "pull", asked_at, id=wire.id, threshold=THRESHOLD)
        held = self._tasks[request.id] = _Task(neuron, wire, asked_at)
        self._machine.at(asked_at + _ALLOWED_S, lambda: self._missed(held))
        self._arrive(request)

    def _missed(self, task: _Task) -> None:
        if not task.submitted:
            self._submit(task, None, 0.0)

    def _submit(
        self, task: _Task, true: float | None, predicted: float, *, probe: bool = False
    ) -> None:
        """Hands in a result with this true score, or an empty one; asks the next validator."""
        task.submitted = True
        self._generating = False
        rules, now = self._rules[task.neuron.hotkey], self._clock.now

        def arrived() -> None:
            submission = Submission(
                task_id=task.task.id,
                results="" if true is None else "AAAA",
                submit_time=0,
                signature=encode_signature(bytes(64)),
            )
            verdict = rules.submit(MINER, submission)
            if true is None:
                if verdict is None or verdict.code != "empty":
                    raise AssertionError("an empty result was not taken")
                self.result.empty += 1
                self._settle(task, "skipped", verdict.cooldown_until)
            else:
                self._machine.at(self._clock.now + VALIDATION_S, lambda: judged(true))

        def judged(true: float) -> None:
            verdict = rules.judged(MINER, min(1.0, max(0.0, true)))
            accepted = verdict.code == "accepted"
            self.result.accepted += accepted
            self.result.refused += not accepted
            given = verdict.score if accepted else None
            self.gate.observe(Pair(predicted, accepted, given, THRESHOLD, SCORER, probe))
            self._settle(task, "accepted" if accepted else "refused", verdict.cooldown_until)

        self._machine.at(now + SUBMIT_S, arrived)
        self._machine.at(now + 1e-3, self._look)

    def _settle(self, task: _Task, fate: Fate, cooldown_until: int) -> None:
        self.result.slowest_s = max(self.result.slowest_s, self._clock.now - task.asked_at)
        self._validators.settled(
            task.neuron.hotkey,
            fate,
            assigned_at=_BEGIN + task.asked_at,
            cooldown_until=float(cooldown_until),
        )
        self._look()

    def _next_task(self) -> TrialTask:
        name = f"task-{next(self._numbers)}"
        image = Random(f"{self.seed} kind {name}").random() < self.world.image_share
        return TrialTask(name, "image" if image else "text", "a cube", "a cube", id=name)
