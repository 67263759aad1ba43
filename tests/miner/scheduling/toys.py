"""A small ladder, two lanes, and requests in every state, for guard, watchdog and scheduler."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from generation.plan import Plan, Rung, Step, StepEvent
from miner.request import ActiveRequest, Caller, Request
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import DeliveryTimes, Estimates
from miner.scheduling.guard import Guard
from miner.scheduling.queueing import FairShares
from miner.scheduling.scheduler import Dispatch, Next, Scheduler
from protocol.tasks import TextTask
from tests.support.fakes import Clock

BUDGET_S = 30.0
DELIVERY_S = 0.5
LANES: Mapping[str, int] = {"gpu": 1, "cpu": 2}
SECONDS: Mapping[str, float] = {
    "draw:best": 6.0,
    "draw:middle": 4.0,
    "draw:lowest": 2.0,
    "pack": 0.5,
}
"""Seconds by cost key."""

LADDER = tuple(Rung(name, 4, 512, 1000, False, "triposr") for name in ("best", "middle", "lowest"))
BEST, MIDDLE, LOWEST = range(3)
ROUTES = tuple(
    (Step("draw", "gpu", f"draw:{rung.name}"), Step("pack", "cpu", "pack")) for rung in LADDER
)

_arrivals = itertools.count()


def make_request(
    caller: str = "caller", *, at: float = 1000.0, allowed_s: float | None = None
) -> Request:
    number = str(next(_arrivals))
    return Request(TextTask(id=number, prompt="p"), Caller(caller), "axon", at, allowed_s, number)


def learned(clock: Clock, *engines: str, factor: float = 1.0) -> Estimates:
    """Estimates whose prior is `factor` times the truth."""
    estimates = Estimates(clock)
    for engine in engines or ("one",):
        estimates.set_prior(engine, {key: factor * value for key, value in SECONDS.items()})
    return estimates


def make_guard(clock: Clock, estimates: Estimates, shares: FairShares | None = None) -> Guard:
    return Guard(estimates, shares or FairShares(clock), horizon_s=BUDGET_S, clock=clock)


def make_active(
    clock: Clock,
    *,
    left_s: float = BUDGET_S,
    caller: str = "caller",
    rung: int = LOWEST,
    engine: str | None = None,
    position: int = 0,
    ran_s: float | None = None,
    guard: Guard | None = None,
    routes: Sequence[tuple[Step, ...]] = ROUTES,
) -> ActiveRequest:
    """A request in any state.

    Args:
        clock: Gives the present.
        left_s: Seconds until its answer must have arrived.
        caller: Whose it is.
        rung: At which level.
        engine: Where it was dispatched, if it was; `guard` then makes its plan.
        position: Which step runs or comes next.
        ran_s: How long that step has run; None while it waits.
        guard: Gives the limits of the plan.
        routes: Its steps by rung.
    """
    request = make_request(caller, at=clock.now + left_s - BUDGET_S)
    active = ActiveRequest(
        request,
        arrival=int(request.id),
        limit_at=clock.now + left_s,
        routes=tuple(routes),
        delivery_s=(DELIVERY_S,) * len(routes),
        rung=rung,
        plan=Plan(LADDER[rung], routes[rung]),
        engine=engine,
        position=position,
        step_since=None if ran_s is None else clock.now - ran_s,
    )
    if engine is not None and guard is not None:
        active.plan = guard.plan(active, engine, rung, active.plan)
    return active


class Shop:
    """A scheduler with engines on a clock that the test moves.

    Args:
        engines: Their names; one if none is given.
        estimates: What steps take; the truth if not given.
        routes: The steps of everything by rung.
        candidates: How much is spent on candidates.
        several: The steps to several pictures that are drawn together, if they differ.

    Attributes:
        clock: The present.
        estimates: What steps take.
        scheduler: Under test.
        given_up: Everybody that it gave up, with reason code and reason.
    """

    def __init__(
        self,
        *engines: str,
        estimates: Callable[[Clock], Estimates] | None = None,
        routes: Sequence[tuple[Step, ...]] = ROUTES,
        candidates: CandidateLimits | None = None,
        several: tuple[Step, ...] | None = None,
    ) -> None:
        self.clock = Clock()
        names = engines or ("one",)
        self.estimates = (estimates or (lambda clock: learned(clock, *names)))(self.clock)
        self.scheduler = Scheduler(
            LADDER,
            lambda request, rung, part, pictures=1, engine=None: (
                several if pictures > 1 and several else routes[LADDER.index(rung)]
            ),
            estimates=self.estimates,
            delivery=DeliveryTimes(),
            budget_s=BUDGET_S,
            margin_s=0.0,
            clock=self.clock,
            candidates=candidates,
        )
        for name in names:
            self.scheduler.add_engine(name, LANES)

    def arrive(self, caller: str = "caller", allowed_s: float | None = None) -> ActiveRequest:
        """Lets a request arrive that must be admitted."""
        request = make_request(caller, at=self.clock.now, allowed_s=allowed_s)
        active, verdict = self.scheduler.arrive(request)
        assert verdict.rung is not None, verdict.reason
        return active

    def next(self) -> Next:
        return self.scheduler.next()

    def dispatched(self) -> list[tuple[ActiveRequest, str]]:
        """Asks what to do, and returns what is to be started where; nothing may be given up."""
        due = self.next()
        assert not due.given_up
        return [(dispatch.active, dispatch.engine) for dispatch in due.dispatches]

    def only(self) -> Dispatch:
        """Asks what to do; it must be to start one request."""
        (dispatch,) = self.next().dispatches
        return dispatch

    def start(self, active: ActiveRequest) -> None:
        """The engine starts the next step of a request."""
        assert active.engine is not None
        step = active.plan.steps[active.position]
        self.scheduler.on_event(active, StepEvent("started", active.position, step))

    def end(self, active: ActiveRequest, *, after: float, kind: str = "finished") -> None:
        """The running step ends `after` seconds from now."""
        assert active.step_since is not None
        self.clock.now += after
        ran = self.clock.now - active.step_since
        step = active.plan.steps[active.position]
        event = StepEvent("failed" if kind == "failed" else "finished", active.position, step, ran)
        self.scheduler.on_event(active, event)

    def run(self, active: ActiveRequest, *, slowness: float = 1.0) -> None:
        """Runs all steps that are left, and takes the request out."""
        for step in active.plan.steps[active.position :]:
            self.start(active)
            self.end(active, after=slowness * SECONDS[step.cost_key])
        self.scheduler.leave(active)
