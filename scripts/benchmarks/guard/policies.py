"""What the guard is compared with: no guard, a fixed queue, version 0.1.0, perfect knowledge."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from generation.plan import Part, Plan, Rung, Step, StepEvent
from generation.stage import CPU, GPU, SPLATS
from miner.request import ActiveRequest, Request
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import Cost, DeliveryTimes, Estimates
from miner.scheduling.guard import Margins
from miner.scheduling.improving import RequestRoute
from miner.scheduling.scheduler import SPZ_BYTES_PER_GAUSSIAN, Scheduler
from scripts.benchmarks.guard import version_010
from scripts.benchmarks.guard.scenarios import BYTES_PER_S, Card, Scenario, Truth
from scripts.benchmarks.guard.simulation import (
    ENGINE,
    Clock,
    Machine,
    Outcome,
    Record,
    Run,
    run_scheduler,
)

BUDGET_S, MARGIN_S = 30.0, 0.2
FIXED_QUEUE = 8
POLICIES = ("no guard", "fixed queue", "version 0.1.0", "guard", "perfect")


def simulate(
    policy: str,
    scenario: Scenario,
    card: Card,
    requests: Iterable[Request],
    truth: Truth,
    *,
    margins: Margins | None = None,
    candidates: CandidateLimits | None = None,
) -> Outcome:
    """Runs one policy through a scenario.

    Args:
        policy: One of `POLICIES`.
        scenario: The traffic; `requests` and `truth` come from it.
        card: The machine.
        requests: In the order of their arrival.
        truth: How long steps take.
        margins: Those of the guard, if not its own.
        candidates: How much the guard spends on further candidates, on a card that scores.
    """
    if policy == "guard":
        return _guard(scenario, card, requests, truth, margins, candidates)
    if policy == "perfect":
        return _perfect(scenario, card, requests, truth)
    return _gated(policy, scenario, card, requests, truth)


def _guard(
    scenario: Scenario,
    card: Card,
    requests: Iterable[Request],
    truth: Truth,
    margins: Margins | None,
    candidates: CandidateLimits | None,
) -> Outcome:
    delivery = DeliveryTimes()

    def make(clock: Clock) -> Scheduler:
        estimates = Estimates(clock)
        estimates.set_prior(
            ENGINE, {key: scenario.prior * value for key, value in card.medians.items()}
        )
        return make_scheduler(
            card, clock, estimates, delivery=delivery, margins=margins, candidates=candidates
        )

    return run_scheduler(
        make,
        requests,
        card.lanes,
        truth,
        hang_at=scenario.hang_at,
        observe_delivery=delivery.observe,
        worth=None if candidates is None else _worth,
    )


def _worth(active: ActiveRequest) -> float:
    """A score under every target, always the same for one object."""
    number = active.group[0].number if active.group else 0
    return 0.5 * Random(f"{(active.parent or active).request.id} {number}").random()


class _KnownTimes(Estimates):
    """Every step of every request, as it will be: cost keys carry the request's id."""

    def __init__(self, clock: Clock, scenario: Scenario, card: Card, truth: Truth) -> None:
        super().__init__(clock)
        self._now = clock
        self._speed = scenario.speed
        self._truth = truth
        self._stages = {stage.name: stage for stage in card.stages}
        self._usual: dict[str, float] = {}

    def cost(self, engine: str, key: str) -> Cost:
        usual = self._usual.get(key)
        if usual is None:
            stage, request_id, real = key.split("|")
            step = Step(stage, self._stages[stage].lane, real)
            usual = self._usual[key] = self._truth.usual_seconds(request_id, step)
        return Cost(usual * self._speed(self._now()), 0.0)

    def observe(self, engine: str, key: str, seconds: float, *, failed: bool = False) -> None:
        pass


class _KnownDelivery(DeliveryTimes):
    def predict(self, transport: str, size: int, z: float) -> float:
        return 0.05 + size / BYTES_PER_S


class _KeyedTruth(Truth):
    """The truth for steps whose keys carry the request's id."""

    def usual_seconds(self, request_id: str, step: Step) -> float:
        return super().usual_seconds(
            request_id, replace(step, cost_key=step.cost_key.split("|")[-1])
        )


def _perfect(scenario: Scenario, card: Card, requests: Iterable[Request], truth: Truth) -> Outcome:
    keyed = _KeyedTruth.__new__(_KeyedTruth)
    keyed.__dict__ = truth.__dict__

    def steps(
        request: Request, rung: Rung, part: Part, pictures: int = 1, engine: str | None = None
    ) -> tuple[Step, ...]:
        return tuple(
            replace(step, cost_key=f"{step.stage}|{request.id}|{step.cost_key}")
            for step in card.steps(request, rung, part, pictures)
        )

    def make(clock: Clock) -> Scheduler:
        estimates = _KnownTimes(clock, scenario, card, truth)
        return make_scheduler(
            card,
            clock,
            estimates,
            delivery=_KnownDelivery(),
            steps=steps,
            margins=Margins(0.0, 0.0, 0.0, 0.0),
        )

    return run_scheduler(make, requests, card.lanes, keyed, hang_at=scenario.hang_at)


def make_scheduler(
    card: Card,
    clock: Clock,
    estimates: Estimates,
    *,
    delivery: DeliveryTimes | None = None,
    steps: RequestRoute | None = None,
    margins: Margins | None = None,
    candidates: CandidateLimits | None = None,
) -> Scheduler:
    """Returns a scheduler with one engine, `ENGINE`.

    Args:
        card: The machine.
        clock: Virtual.
        estimates: What the guard knows of it.
        delivery: What it knows of the way to the callers.
        steps: Those of a request at a rung; the card's when None.
        margins: Those of the guard, if not its own.
        candidates: How much is spent on further candidates.
    """
    scheduler = Scheduler(
        card.ladder,
        steps or card.steps,
        estimates=estimates,
        delivery=delivery or DeliveryTimes(),
        budget_s=BUDGET_S,
        margin_s=MARGIN_S,
        clock=clock,
        margins=margins,
        candidates=candidates,
    )
    scheduler.add_engine(ENGINE, card.lanes)
    return scheduler


_OLD_LANES: Mapping[str, int] = {GPU: 1, SPLATS: 1, CPU: 2}
_OLD_ROUTE = {
    "text_to_image": GPU,
    "background": CPU,
    "scene_code": GPU,
    "splats": SPLATS,
    "encode": CPU,
}
_OLD_PARTS = {"background": "cutout", "scene_code": "lift", "splats": "splats", "encode": "encode"}


class _OldTruth(Truth):
    """The same times for the pipeline of version 0.1.0, whose picture is one step."""

    def __init__(self, truth: Truth, card: Card) -> None:
        self.__dict__ = truth.__dict__
        self._card = card
        self._requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        self._requests[request.id] = request

    def seconds(self, request_id: str, step: Step, now: float) -> float:
        steps = self._card.steps(self._requests[request_id], self._card.ladder[0])
        part = _OLD_PARTS.get(step.stage)
        names = {part} if part else {"prompt", "denoise", "decode"}
        return sum(
            super(_OldTruth, self).seconds(request_id, s, now) for s in steps if s.stage in names
        )


def _gated(
    policy: str, scenario: Scenario, card: Card, requests: Iterable[Request], truth: Truth
) -> Outcome:
    """The pipeline of version 0.1.0: oldest request first, a question before every stage."""
    clock = Clock()
    old = _OldTruth(truth, card)
    machine = Machine(_OLD_LANES, old, clock, scenario.hang_at)
    prior = _old_prior(card, scenario.prior)
    guard = version_010.TimingGuard(
        version_010.StageEstimator(prior, clock=clock), budget_s=30.0, margin_s=1.0, clock=clock
    )
    records: dict[str, Record] = {}
    pending: dict[str, str] = {}

    def admitted(request: Request, stages: tuple[str, ...]) -> bool:
        own = sum(caller == request.caller.hotkey for caller in pending.values())
        if policy == "no guard":
            return True
        if policy == "fixed queue":
            return len(pending) < FIXED_QUEUE
        if len(pending) >= version_010.MAX_PENDING or own >= version_010.MAX_PENDING_PER_CALLER:
            return False
        budget = guard.budget(request.allowed_s)
        return guard.admit(request.id, request.task.kind, stages, request.received_at, budget).go

    def arrive(request: Request, order: int) -> None:
        record = records[request.id] = Record(request)
        old.add(request)
        stages = version_010.STAGES if request.task.kind == "text" else version_010.STAGES[1:]
        if not admitted(request, stages):
            return
        record.accepted, record.rung = True, 0
        pending[request.id] = request.caller.hotkey
        steps = tuple(Step(stage, _OLD_ROUTE[stage], stage) for stage in stages)
        timings: dict[str, float] = {}
        guarded = policy == "version 0.1.0"
        limit = request.received_at + (guard.budget(request.allowed_s) if guarded else 1e9)
        turn = (float(order), order)

        def on_event(event: StepEvent) -> None:
            if event.kind == "finished":
                timings[event.step.stage] = event.ran_s

        def on_end(completed: bool) -> None:
            pending.pop(request.id, None)
            if guarded:
                guard.forget(request.id, timings)
            if completed:
                size = SPZ_BYTES_PER_GAUSSIAN * card.ladder[0].gaussians
                record.finished_at = clock.now
                record.delivered_at = clock.now + 0.05 + size / BYTES_PER_S

        run = Run(record, Plan(card.ladder[0], steps), turn, limit, on_event, on_end)
        if guarded:
            run.may_start = lambda stage: (
                clock.now < limit and guard.start_stage(request.id, stage).go
            )
        machine.start(run)

    for order, request in enumerate(requests):
        machine.at(request.received_at, partial(arrive, request, order))
    machine.go()
    return Outcome(list(records.values()), machine.busy_s)


def _old_prior(card: Card, factor: float) -> dict[str, float]:
    best = card.ladder[0]
    median = card.medians
    return {
        "text_to_image": factor
        * (
            median["prompt:new"]
            + best.steps * median[f"denoise:{best.size}"]
            + median[f"decode:{best.size}"]
        ),
        "background": factor * median["cutout:drawn"],
        "scene_code": factor * median["lift:triposr"],
        "splats": factor * median[f"splats:triposr:{best.gaussians}"],
        "encode": factor * median[f"encode:{best.gaussians}"],
    }
