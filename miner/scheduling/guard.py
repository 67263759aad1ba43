"""The timing guard: at which rung a request fits, if at all. Pure: a clock and numbers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import erf, inf, sqrt

from generation.plan import Plan, Step
from miner.request import ActiveRequest, ReasonCode
from miner.scheduling.board import Board, Lanes
from miner.scheduling.estimates import Cost, Estimates
from miner.scheduling.forecast import Finish
from miner.scheduling.queueing import FairShares
from miner.scheduling.watchdog import step_limit

PROBE_S = 60.0
"""A request that would be dropped on an idle machine is let in if its steps have not been observed
for so long: what is refused is never observed."""


@dataclass(frozen=True)
class Margins:
    """How sure the guard wants to be, in standard deviations (docs/guard.md shows the trade-off).

    Attributes:
        admit: That a newcomer at the lowest rung is on time, and that it makes nobody late.
        better: The same for any better rung: being on time is worth more than quality.
        dispatch: That a waiting request will be on time when its first step starts. To drop it then
            costs nothing, and the next in the queue has more time left.
        start: That it can still be on time when a later step starts; 0 would be an even chance.
    """

    admit: float = 2.0
    better: float = 2.5
    dispatch: float = 2.5
    start: float = 0.3


@dataclass(frozen=True)
class Verdict:
    """What the guard says about a request.

    Attributes:
        rung: The rung that it may take, None if it is dropped.
        reason_code: "ok" or why it is dropped: "predicted_late" or "caller_share".
        reason: One line with the numbers.
        predicted_s: Seconds from its receipt to its answer as they are expected now, without the
            margin and the delivery that the reason counts; infinite if no engine can be used.
        lowered: Waiting requests that have to take a lower rung for it, with that rung.
        probe: Whether it is let in only to observe the machine.
        head_start_s: By how much its place in every lane is ahead of its deadline's.
        booked_s: Seconds of one engine's busiest lane that it takes, divided by the engines.
    """

    rung: int | None
    reason_code: ReasonCode
    reason: str
    predicted_s: float
    lowered: Mapping[ActiveRequest, int] = field(default_factory=dict)
    probe: bool = False
    head_start_s: float = 0.0
    booked_s: float = 0.0


class Guard:
    """Decides on arrival and again when an engine is free for a request.

    Args:
        estimates: Predicts the seconds of a step.
        shares: What one caller may book.
        horizon_s: Seconds that can be booked on one engine: the budget of a request.
        clock: Monotonic clock, in seconds.
        margins: How sure to be.
    """

    def __init__(
        self,
        estimates: Estimates,
        shares: FairShares,
        *,
        horizon_s: float,
        clock: Callable[[], float],
        margins: Margins | None = None,
    ) -> None:
        self._estimates = estimates
        self._shares = shares
        self._horizon_s = horizon_s
        self._clock = clock
        self._margins = margins or Margins()

    def admit(
        self,
        newcomer: ActiveRequest,
        admitted: Sequence[ActiveRequest],
        engines: Mapping[str, Lanes],
    ) -> Verdict:
        """Decides about a request on arrival.

        Takes the highest rung at which neither the newcomer nor anybody admitted becomes late. A
        caller that another one crowds out goes first where that makes nobody late. If no rung fits,
        lowers the rungs of waiting requests, one level of the ladder at a time. If that is not
        enough either, drops the newcomer.

        Args:
            newcomer: Not yet among the admitted; its rung is not looked at.
            admitted: Everybody else.
            engines: The lanes of the engines that can be used.
        """
        board = Board(self._estimates, self._clock(), engines, len(admitted))
        caller = newcomer.request.caller.hotkey
        horizon = self._horizon_s * max(1, len(engines))
        levels = _distinct(newcomer.routes)
        lowest = levels[-1]
        booked = board.booked(admitted, {})
        waiting = [a for a in admitted if a.engine is None]
        excess = 0.0

        def fit(
            rungs: Mapping[ActiveRequest, int], rung: int, *, candidate: ActiveRequest = newcomer
        ) -> Finish | None:
            nonlocal excess
            excess = self._shares.excess(
                caller,
                board.booking(newcomer, rung),
                board.booked(admitted, rungs) if rungs else booked,
                horizon,
            )
            if excess > 0.0:
                return None
            return board.on_time_with(candidate, rung, admitted, rungs, self._pair(rung, lowest))

        def lowered(level: int) -> Mapping[ActiveRequest, int]:
            return {a: min(level, len(a.routes) - 1) for a in waiting if a.rung < level}

        if admitted and self._shares.is_crowded_out(caller):
            early = replace(newcomer, head_start_s=self._horizon_s)
            first = _first(levels, lambda rung: fit({}, rung, candidate=early))
            if first is not None:
                return self._accept(board, early, *first)
        first = _first(levels, lambda rung: fit({}, rung))
        if first is not None:
            return self._accept(board, newcomer, *first)
        depths = [level for level in range(1, len(newcomer.routes)) if lowered(level)]
        first = _first(depths, lambda level: fit(lowered(level), lowest))
        if first is not None:
            level, finish = first
            accepted = self._accept(board, newcomer, lowest, finish)
            return replace(accepted, lowered=lowered(level))
        if not engines:
            return Verdict(None, "predicted_late", "no engine can be used at present", inf)
        if excess > 0.0:
            share = self._shares.share(horizon)
            words = f"{excess:.1f} s beyond the {share:.1f} s that one caller may book"
            return Verdict(None, "caller_share", words, inf)
        finish = board.finish_of(newcomer, lowest, admitted)
        time_left = newcomer.limit_at - newcomer.delivery_s[lowest] - self._clock()
        if not admitted and time_left > 0 and self._unobserved(newcomer, engines):
            accepted = self._accept(board, newcomer, lowest, finish)
            return replace(accepted, reason=f"probe: {accepted.reason}", probe=True)
        return Verdict(
            None, "predicted_late", *self._explain(board, newcomer, lowest, finish)[::-1]
        )

    def choose(
        self,
        active: ActiveRequest,
        engine: str,
        admitted: Sequence[ActiveRequest],
        engines: Mapping[str, Lanes],
    ) -> Verdict:
        """Decides at which rung a waiting request starts now that an engine is free for it.

        It may start at a better rung than it was admitted with if the machine has caught up and the
        caller's share has room for it, or at a lower one. It is dropped only if its own steps at
        the lowest rung would take too long at the margin `dispatch`.

        Args:
            active: Waits; among the admitted.
            engine: What is free for it.
            admitted: Everybody.
            engines: The lanes of the engines that can be used.
        """
        others = [a for a in admitted if a is not active]
        board = Board(self._estimates, self._clock(), engines, len(admitted))
        levels = _distinct(active.routes)
        lowest = levels[-1]
        caller = active.request.caller.hotkey
        horizon = self._horizon_s * max(1, len(engines))
        booked = board.booked(others, {}) if self._shares.floods(caller) else None

        def fit(rung: int) -> Finish | None:
            # The quality of a flood must not take the room that is kept for others.
            if (
                rung != lowest
                and booked is not None
                and self._shares.excess(caller, board.booking(active, rung), booked, horizon) > 0.0
            ):
                return None
            pair = self._pair(rung, lowest)
            return board.on_time_with(active, rung, others, {}, pair, engine=engine)

        first = _first(levels, fit)
        if first is not None:
            return self._accept(board, active, *first, engine=engine)
        finish = board.finish_of(active, lowest, others, engine=engine)
        predicted, words = self._explain(board, active, lowest, finish, engine=engine)
        route = active.routes[lowest]
        steps = [
            timed
            for step, timed in zip(route, board.timed(engine, route), strict=True)
            if not step.optional
        ]
        needed = sum(seconds for _, seconds, _ in steps)
        spread = sqrt(sum(variance for _, _, variance in steps))
        left = active.limit_at - active.delivery_s[lowest] - self._clock()
        if needed + self._margins.dispatch * spread > left and not active.probe:
            return Verdict(None, "predicted_late", words, predicted)
        return Verdict(lowest, "ok", words, predicted)

    def latest_start(self, active: ActiveRequest, engines: Iterable[str]) -> float:
        """Returns the moment after which a waiting request has no even chance at any rung.

        Args:
            active: Waits.
            engines: Those that may run it.
        """
        latest = active.limit_at - active.delivery_s[-1]
        if active.probe:
            return latest
        needed = [
            sum(
                self._estimates.cost(engine, step.cost_key).mean
                for step in active.routes[-1]
                if not step.optional
            )
            for engine in engines
        ]
        return latest - min(needed, default=0.0)

    def plan(self, active: ActiveRequest, engine: str, rung: int, plan: Plan) -> Plan:
        """Adds to a plan when each step must have started and how long it may run.

        No step has to leave time for an optional one behind it. An optional one that others follow
        leaves more than enough time for these.

        Args:
            active: Whose plan it is.
            engine: Where it will run.
            rung: Index in the ladder.
            plan: Rung and steps.
        """
        costs = [self._estimates.cost(engine, step.cost_key) for step in plan.steps]
        latest: list[float] = []
        mean, variance = 0.0, 0.0
        for step, cost in zip(reversed(plan.steps), reversed(costs), strict=True):
            after, spread = mean + cost.mean, variance + cost.variance
            needed = after + self._margins.start * sqrt(spread)
            if step.optional and mean > 0.0:
                # Detail is not worth the object: it may take twice as long as predicted.
                needed = after + cost.mean + self._margins.better * sqrt(spread)
            latest.append(max(0.0, needed))
            if not step.optional:
                mean, variance = after, spread
        if active.probe:
            latest = [0.0] * len(costs)  # Its own estimates are what is in doubt.
        limits = tuple(step_limit(cost) for cost in costs)
        return replace(plan, latest_start=tuple(reversed(latest)), limit=limits)

    def hopeless(self, active: ActiveRequest) -> str | None:
        """Says why a request between two steps can no longer be on time, or returns None.

        Its steps so far in the present lane tell how slow the next ones there will be.
        """
        if active.probe or active.position == 0 or active.position >= len(active.plan.steps):
            return None
        rest = self._estimates_of(active)
        if not rest:
            return None
        mean = sum(cost.mean for cost in rest)
        spread = sqrt(sum(cost.variance for cost in rest))
        left = active.deadline - self._clock()
        if mean + self._margins.start * spread <= left:
            return None
        return f"{mean:.1f} s of steps are left, and {max(0.0, left):.1f} s"

    def _estimates_of(self, active: ActiveRequest) -> list[Cost]:
        steps = active.plan.steps[active.position :]
        engine, pace, lane = active.engine or "", active.pace, steps[0].lane
        costs = []
        for step in steps:
            if step.optional:
                continue
            if step.lane != lane:
                pace = 1.0
            cost = self._estimates.cost(engine, step.cost_key)
            costs.append(Cost(pace * cost.mean, pace * pace * cost.variance))
        return costs

    def _unobserved(self, newcomer: ActiveRequest, engines: Mapping[str, Lanes]) -> bool:
        stages = {step.stage for step in newcomer.routes[-1]}
        return any(
            self._estimates.seconds_since_observed(engine, stages) >= PROBE_S for engine in engines
        )

    def _pair(self, rung: int, lowest: int) -> tuple[float, float]:
        """Returns the margins of a newcomer at this rung and of everybody else."""
        margins = self._margins
        return (margins.admit if rung == lowest else margins.better, margins.admit)

    def _accept(
        self,
        board: Board,
        active: ActiveRequest,
        rung: int,
        finish: Finish,
        *,
        engine: str | None = None,
    ) -> Verdict:
        predicted, words = self._explain(board, active, rung, finish, engine=engine)
        return Verdict(
            rung,
            "ok",
            words,
            predicted,
            head_start_s=active.head_start_s,
            booked_s=board.booking(active, rung) / max(1, board.engines),
        )

    def _explain(
        self,
        board: Board,
        active: ActiveRequest,
        rung: int,
        finish: Finish,
        *,
        engine: str | None = None,
    ) -> tuple[float, str]:
        """Returns the expected seconds from the receipt to the answer, and the numbers."""
        margin = self._margins.admit
        alone = board.alone(active, rung, margin, engine)
        now = self._clock()
        since = now - active.request.received_at
        delivery = active.delivery_s[rung]
        expected = since + finish.mean
        total = expected + margin * sqrt(finish.variance) + delivery
        budget = active.limit_at - active.request.received_at
        queue = max(0.0, total - alone - delivery)
        words = (
            f"{_percentile(margin)} {queue:.1f} queue + {alone:.1f} steps + {delivery:.1f} "
            f"delivery = {total:.1f} of {budget:.1f} s"
        )
        return expected, words


def _distinct(routes: Sequence[Sequence[Step]]) -> list[int]:
    """Returns the rungs that differ in their steps, best first, and always the lowest."""
    kept: list[int] = []
    for rung, route in enumerate(routes):
        if not kept or [s.cost_key for s in route] != [s.cost_key for s in routes[kept[-1]]]:
            kept.append(rung)
    return kept


def _first(levels: Sequence[int], fit: Callable[[int], Finish | None]) -> tuple[int, Finish] | None:
    """Returns the first level that fits, given that those after one that fits do, too.

    The first and the last are tried first: most of the time the machine is either free or full.
    """
    if not levels:
        return None
    if (finish := fit(levels[0])) is not None:
        return levels[0], finish
    if len(levels) == 1 or (finish := fit(levels[-1])) is None:
        return None
    low, high, end = 0, len(levels) - 1, finish
    while high - low > 1:
        middle = (low + high) // 2
        if (finish := fit(levels[middle])) is not None:
            high, end = middle, finish
        else:
            low = middle
    return levels[high], end


def _percentile(z: float) -> str:
    return f"p{50 * (1 + erf(z / sqrt(2))):.0f}"
