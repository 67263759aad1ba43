"""Every admitted request, and what happens to it next. Pure and synchronous: events in, values out.

The service and the simulation in `scripts/benchmarks` drive the same object: the one with an event
loop and a real clock, the other with a virtual one.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from generation.plan import Part, Plan, Rung, StepEvent
from miner.request import ActiveRequest, Caller, ReasonCode, Request
from miner.scheduling.board import Board, Lanes
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import DeliveryTimes, Estimates
from miner.scheduling.guard import Guard, Margins, Verdict
from miner.scheduling.improving import Improver, RequestRoute
from miner.scheduling.pool import EnginePool
from miner.scheduling.queueing import FairShares
from miner.scheduling.routes import SharedRoutes
from miner.scheduling.watchdog import RECOVERY_S, Overrun, overruns
from protocol.tasks import TextTask

SPZ_BYTES_PER_GAUSSIAN = 16
DELIVERY_Z = 1.645

_NEWCOMER = TextTask(id="newcomer", prompt="a red car")
_LAST = 2**62
"""The arrival of the request whose wait is predicted: after all others."""


@dataclass(frozen=True)
class Dispatch:
    """A request that an engine is to start now, by its plan."""

    active: ActiveRequest
    engine: str
    plan: Plan


@dataclass(frozen=True)
class GivenUp:
    """A waiting request that is to be answered as dropped, with a reason code and the numbers."""

    active: ActiveRequest
    reason_code: ReasonCode
    reason: str


@dataclass
class Next:
    """What the driver does now.

    Attributes:
        dispatches: Requests and candidates to start.
        given_up: Requests to answer as dropped.
        taken_back: Candidates to cancel, because their engine is needed.
        done: Requests to answer with their best candidate.
    """

    dispatches: list[Dispatch] = field(default_factory=list)
    given_up: list[GivenUp] = field(default_factory=list)
    taken_back: list[ActiveRequest] = field(default_factory=list)
    done: list[ActiveRequest] = field(default_factory=list)


class Scheduler:
    """Admits, orders, dispatches and watches requests.

    Args:
        ladder: Quality levels of the preset, best first.
        route: Gives the steps of a request at a rung.
        estimates: What steps take; the warm-up's prior is in it before the first request.
        delivery: What answers take to their callers.
        budget_s: Seconds from the receipt of a request to the arrival of its answer, at most.
        margin_s: Seconds of every budget kept for what cannot be seen: the way over the network.
        clock: Monotonic clock, in seconds.
        margins: How sure the guard wants to be.
        sole_caller: Whether all requests come from one caller, who then may book everything.
        candidates: How much is spent on further candidates.
    """

    def __init__(
        self,
        ladder: Sequence[Rung],
        route: RequestRoute,
        *,
        estimates: Estimates,
        delivery: DeliveryTimes,
        budget_s: float,
        margin_s: float,
        clock: Callable[[], float],
        margins: Margins | None = None,
        sole_caller: bool = False,
        candidates: CandidateLimits | None = None,
    ) -> None:
        self._ladder = tuple(ladder)
        self._route = SharedRoutes(ladder, route)
        self._estimates = estimates
        self._delivery = delivery
        self._budget_s = budget_s
        self._margin_s = margin_s
        self._clock = clock
        self._shares = FairShares(clock, sole=sole_caller)
        self._guard = Guard(
            estimates, self._shares, horizon_s=budget_s, clock=clock, margins=margins
        )
        self._arrivals = itertools.count()
        self._improver = Improver(
            candidates or CandidateLimits(),
            self._route,
            estimates=estimates,
            clock=clock,
        )
        self._active: dict[str, ActiveRequest] = {}
        self._pool = EnginePool(estimates, clock)

    @property
    def active(self) -> Sequence[ActiveRequest]:
        """Every request that is admitted and not answered."""
        return [active for active in self._active.values() if not active.abandoned]

    def add_engine(self, name: str, lanes: Lanes, *, far: bool = False) -> None:
        """Lets an engine take requests from now on.

        Args:
            name: Of the engine.
            lanes: How many steps each of its lanes runs at once.
            far: Whether a request takes time to get there; one that waits is then handed over while
                the step before it runs.
        """
        self._pool.add(name, lanes, far=far)

    def hold_engine(self, name: str) -> None:
        """Lets an engine end what it has, and take nothing more until it is added again."""
        self._pool.hold(name)

    def release_engine(self, name: str) -> None:
        """Lets an engine that is held take requests again."""
        self._pool.release(name)

    def is_busy(self, name: str) -> bool:
        """Whether an engine has a request, or a step that goes on without one."""
        return any(active.engine == name for active in self._active.values())

    def place_again(self, active: ActiveRequest) -> bool:
        """Lets a request whose engine was removed wait for another one, once.

        Returns:
            False if it was placed again before, or has no time left.
        """
        if active.lost_engine is not None:
            return False
        active.begin_again()
        self._set_rung(active, active.rung)
        active.latest_start = self._guard.latest_start(active, self._pool.engines)
        if self._clock() >= active.latest_start:
            return False
        self._active[active.request.id] = active
        return True

    def remove_engine(self, name: str) -> list[ActiveRequest]:
        """Takes an engine out, and returns the requests that it had.

        Those that have an object already are not among them: `next` calls them done.
        """
        self._pool.remove(name)
        lost = [a for a in self._active.values() if a.engine == name and a.candidates is None]
        for active in lost:
            del self._active[active.request.id]
            if not active.abandoned:
                self._improver.take_back(active)
        return [active for active in lost if active.parent is None]

    def arrive(self, request: Request) -> tuple[ActiveRequest, Verdict]:
        """Decides about a request; if it is admitted, it waits for an engine from now on."""
        active = self._new(request, next(self._arrivals))
        self._shares.note(request.caller.hotkey)
        verdict = self._guard.admit(active, list(self._active.values()), self._pool.usable)
        active.predicted_s = verdict.predicted_s
        if verdict.rung is None:
            return active, verdict
        active.probe = verdict.probe
        active.head_start_s = verdict.head_start_s
        for other, rung in verdict.lowered.items():
            self._set_rung(other, rung)
        self._set_rung(active, verdict.rung)
        active.latest_start = self._guard.latest_start(active, self._pool.engines)
        self._active[request.id] = active
        self._shares.book(request.caller.hotkey, verdict.booked_s)
        return active, verdict

    def next(self) -> Next:
        """Says what to do now; to be asked after every arrival, event, departure and wake-up."""
        due = Next()
        self._expire(due)
        while True:
            chosen = self._free_for_next()
            if chosen is None:
                break
            active, engine = chosen
            active.routes = self._route.ladder_of(active.request, engine)
            verdict = self._guard.choose(
                active, engine, list(self._active.values()), self._pool.usable
            )
            if verdict.rung is None:
                self._give_up(active, verdict.reason, due)
                continue
            self._set_rung(active, verdict.rung)
            active.engine = engine
            active.plan = self._guard.plan(active, engine, verdict.rung, active.plan)
            due.dispatches.append(Dispatch(active, engine, active.plan))
        self._improve(due)
        return due

    def counts(self, active: ActiveRequest) -> bool:
        """Whether what it makes is still wanted: it was not taken back or lost with its engine."""
        return self._active.get(active.request.id) is active and not active.abandoned

    def made(self, active: ActiveRequest, worths: Sequence[float | None]) -> None:
        """Takes in that a request has its first object, or what candidates are worth.

        What does not count any more is ignored: a candidate may be made again elsewhere by now.

        Args:
            active: The request or the candidates.
            worths: The score of its object, or the rating of each picture; None if there is no
                scorer, or a candidate failed.
        """
        if not self.counts(active):
            return
        if active.parent is None:
            self._improver.begin(active, worths[0])
            return
        self._improver.end(active, worths)
        self._active.pop(active.request.id, None)

    def stop_improving(self) -> None:
        """Starts no candidate any more."""
        self._improver.stop()

    def _improve(self, due: Next) -> None:
        improvement = self._improver.next(list(self._active.values()), self._pool.usable)
        for extra in improvement.taken_back:
            self.leave(extra)
        for extra, engine in improvement.start:
            part: Part = "picture" if extra.plan.seeds else "object"
            steps = self._route(extra.request, extra.plan.rung, part, len(extra.group), engine)
            extra.plan = self._guard.plan(extra, engine, 0, replace(extra.plan, steps=steps))
            self._active[extra.request.id] = extra
            due.dispatches.append(Dispatch(extra, engine, extra.plan))
        due.taken_back, due.done = improvement.taken_back, improvement.done

    def wake_up_at(self) -> float | None:
        """Returns when `next` or `overruns` has news although nothing happens."""
        now = self._clock()
        moments = [a.latest_start for a in self._active.values() if a.engine is None]
        for active in self._active.values():
            if active.step_since is not None and active.plan.limit:
                limit_at = active.step_since + active.plan.limit[active.position]
                moments.append(limit_at if limit_at > now else limit_at + RECOVERY_S)
        if (stop_at := self._improver.wake_up_at()) is not None:
            moments.append(stop_at)
        return min(moments, default=None)

    def on_event(self, active: ActiveRequest, event: StepEvent) -> None:
        """Takes in what an engine reports of a request."""
        now = self._clock()
        if event.kind == "started":
            active.position, active.step_since = event.position, now
            if active.request.id not in self._active and active.engine in self._pool.engines:
                # It left while the news of this step was on its way.
                active.abandoned = True
                self._active[active.request.id] = active
            return
        if event.kind == "skipped":
            return
        engine = active.engine or ""
        active.step_since = None
        active.position = event.position + 1
        self._note_pace(active, event)
        stage = event.step.stage
        active.ran[stage] = active.ran.get(stage, 0.0) + event.ran_s
        self._estimates.observe(
            engine, event.step.cost_key, event.ran_s, failed=event.kind == "failed"
        )
        self._pool.suspect.discard(engine)
        if active.abandoned:
            self._active.pop(active.request.id, None)

    def _new(self, request: Request, arrival: int) -> ActiveRequest:
        budget = (
            self._budget_s if request.allowed_s is None else min(self._budget_s, request.allowed_s)
        )
        return ActiveRequest(
            request=request,
            arrival=arrival,
            limit_at=request.received_at + max(0.0, budget - self._margin_s),
            routes=self._route.ladder_of(request),
            delivery_s=tuple(
                self._delivery.predict(
                    request.transport, SPZ_BYTES_PER_GAUSSIAN * rung.gaussians, DELIVERY_Z
                )
                for rung in self._ladder
            ),
            rung=len(self._ladder) - 1,
            plan=Plan(self._ladder[-1], ()),
        )

    def _note_pace(self, active: ActiveRequest, event: StepEvent) -> None:
        lane, engine = event.step.lane, active.engine or ""
        following = active.plan.steps[event.position + 1 :]
        block = list(itertools.takewhile(lambda step: step.lane == lane, following))
        if not block:
            active.block_ran = active.block_predicted = active.block_left = 0.0
            return
        active.block_ran += event.ran_s
        active.block_predicted += self._estimates.cost(engine, event.step.cost_key).mean
        active.block_left = sum(self._estimates.cost(engine, s.cost_key).mean for s in block)

    def leave(self, active: ActiveRequest) -> None:
        """Takes out a request that has its answer; a step that still runs keeps its lane.

        Its candidates leave with it; one that is given up leaves by itself.
        """
        self._improver.leave(active)
        for each in [a for a in self._active.values() if a is active or a.parent is active]:
            if each.step_since is not None and each.engine in self._pool.engines:
                each.abandoned = True
            else:
                del self._active[each.request.id]

    def overruns(self) -> list[Overrun]:
        """Returns the steps past their limits; their engines take no request until they end."""
        past = overruns(self._active.values(), self._clock())
        self._pool.suspect = {overrun.active.engine or "" for overrun in past}
        return past

    def backlog(self) -> Mapping[str, float]:
        """Returns for each engine the seconds until it has done everything that it may have to do.

        A request that no engine has yet counts for all of them.
        """
        return self._pool.backlog(list(self._active.values()))

    def predicted_wait(self) -> float | None:
        """Returns the seconds that a text task from now would wait beside its own steps.

        None while no engine can be used.
        """
        usable = self._pool.usable
        if not usable:
            return None
        admitted = list(self._active.values())
        board = Board(self._estimates, self._clock(), usable, len(admitted))
        newcomer = self._new(Request(_NEWCOMER, Caller(""), "", self._clock()), _LAST)
        end = board.finish_of(newcomer, 0, admitted)
        return max(0.0, end.mean - board.alone(newcomer, 0, 0.0, None))

    def _set_rung(self, active: ActiveRequest, rung: int) -> None:
        active.rung = rung
        active.plan = Plan(self._ladder[rung], active.routes[rung])

    def _expire(self, due: Next) -> None:
        now = self._clock()
        for active in list(self._active.values()):
            if active.engine is None or active.step_since is not None or active.abandoned:
                continue
            if active.parent is not None or active.candidates is not None:
                continue
            reason = self._guard.hopeless(active)
            if reason is not None:
                self._give_up(active, reason, due)
        for active in [a for a in self._active.values() if a.engine is None]:
            if now >= active.latest_start:
                waited, left = now - active.request.received_at, active.deadline - now
                reason = f"waited {waited:.1f} s for an engine; {max(0.0, left):.1f} s are too few"
                self._give_up(active, reason, due)

    def _free_for_next(self) -> tuple[ActiveRequest, str] | None:
        """Returns the first waiting request that an engine would run at once, and the engine."""
        admitted = self._active.values()
        waiting = sorted((a for a in admitted if a.engine is None), key=lambda a: a.turn)
        seen: set[str] = set()
        for active in waiting:
            lane = active.routes[active.rung][0].lane
            if lane in seen:
                continue
            seen.add(lane)
            if (engine := self._pool.engine_for(active, admitted)) is not None:
                return active, engine
        return None

    def _give_up(self, active: ActiveRequest, reason: str, due: Next) -> None:
        self._active.pop(active.request.id, None)
        code: ReasonCode = "predicted_late_stage"
        if active.lost_engine is not None:
            code, reason = "engine_lost", f"engine {active.lost_engine} was lost, and then {reason}"
        due.given_up.append(GivenUp(active, code, reason))
