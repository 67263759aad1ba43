"""The machine at one moment: what everybody still needs, and when everybody will be done."""

from collections.abc import Hashable, Mapping, Sequence
from math import inf, sqrt

from generation.plan import Step, Turn
from miner.request import ActiveRequest
from miner.scheduling.estimates import Cost, Estimates
from miner.scheduling.forecast import Finish, LaneJob, TimedStep, forecast
from miner.scheduling.queueing import total_by

Lanes = Mapping[str, int]
"""How many steps each lane of an engine runs at once."""

FINE_REQUESTS = 24
"""With more requests, the forecast takes neighbouring steps of one lane as one: what an older
request could slip in between them matters little then."""


class Board:
    """The machine at one moment: remaining steps of everybody, timed once.

    Args:
        estimates: Predicts the seconds of a step.
        now: The moment, in monotonic seconds.
        engines: The lanes of the engines that can be used.
        count: How many requests there are.
        extras: Whether candidates count in full. As they are taken back when a request arrives,
            they count otherwise only with the step that runs.
    """

    def __init__(
        self,
        estimates: Estimates,
        now: float,
        engines: Mapping[str, Lanes],
        count: int,
        *,
        extras: bool = False,
    ) -> None:
        self._extras = extras
        self._fine = count <= FINE_REQUESTS
        self._blocks: dict[tuple[str, int], Sequence[TimedStep]] = {}
        self._estimates = estimates
        self._now = now
        self._engines = engines
        self._costs: dict[tuple[str, str], Cost] = {}
        self._timed: dict[tuple[str, int], Sequence[TimedStep]] = {}
        self._jobs: dict[tuple[Turn, int, str | None], LaneJob] = {}
        self._bookings: dict[tuple[int, int], float] = {}
        self._before: Sequence[Finish] | None = None

    def cost(self, engine: str, key: str) -> Cost:
        """Returns what one step takes, as predicted at this moment."""
        cost = self._costs.get((engine, key))
        if cost is None:
            cost = self._costs[engine, key] = self._estimates.cost(engine, key)
        return cost

    def timed(self, engine: str, steps: Sequence[Step]) -> Sequence[TimedStep]:
        """Returns lane, seconds and variance of each step.

        Steps of one stage are slow together, so their standard deviations add up: the variances
        grow as 1, 3, 5 ..., whose sum is the square of their number. Different stages count as
        independent.
        """
        key = (engine, id(steps))
        timed = self._timed.get(key)
        if timed is None:
            timed = []
            for step in steps:
                cost = self.cost(engine, step.cost_key)
                timed.append((step.lane, cost.mean, cost.variance * (2 * step.index + 1)))
            self._timed[key] = timed
        return timed

    def _merged(
        self, engine: str, steps: Sequence[Step], timed: Sequence[TimedStep]
    ) -> Sequence[TimedStep]:
        """Joins neighbouring steps of one lane."""
        key = (engine, id(steps))
        blocks = self._blocks.get(key)
        if blocks is None:
            joined: list[TimedStep] = []
            for lane, seconds, variance in timed:
                if joined and joined[-1][0] == lane:
                    _, before, spread = joined.pop()
                    seconds, variance = before + seconds, spread + variance
                joined.append((lane, seconds, variance))
            blocks = self._blocks[key] = joined
        return blocks

    @property
    def engines(self) -> int:
        """How many engines can be used."""
        return len(self._engines)

    def booked(
        self, admitted: Sequence[ActiveRequest], rungs: Mapping[ActiveRequest, int]
    ) -> Mapping[Hashable, float]:
        """Returns the seconds booked by caller, some requests at other rungs."""
        return total_by(
            (a.request.caller.hotkey, self.booking(a, rungs.get(a, a.rung))) for a in admitted
        )

    def booking(self, active: ActiveRequest, rung: int) -> float:
        """Returns the seconds that a request still takes of the lane that it uses most."""
        key = (active.arrival, rung)
        if key not in self._bookings:
            self._bookings[key] = self._booking(active, rung)
        return self._bookings[key]

    def _booking(self, active: ActiveRequest, rung: int) -> float:
        engine = active.engine or next(iter(self._engines), None)
        if engine is None or active.parent is not None:
            return 0.0
        by_lane: dict[str, float] = {}
        for lane, seconds, _ in self._left(active, rung, engine):
            by_lane[lane] = by_lane.get(lane, 0.0) + seconds
        return max(by_lane.values(), default=0.0)

    def job(self, active: ActiveRequest, rung: int, engine: str | None = None) -> LaneJob:
        """Returns a request as the forecast takes it; `engine` binds one that waits."""
        key = (active.turn, rung, engine)
        job = self._jobs.get(key)
        if job is None:
            bound = active.engine or engine
            names = (bound,) if bound is not None else tuple(self._engines)
            routes = {name: self._left(active, rung, name) for name in names}
            job = LaneJob(active.turn, routes, running=active.step_since is not None)
            self._jobs[key] = job
        return job

    def finish_of(
        self,
        newcomer: ActiveRequest,
        rung: int,
        others: Sequence[ActiveRequest],
        *,
        engine: str | None = None,
    ) -> Finish:
        """Forecasts one request among the others."""
        jobs = [self.job(a, a.rung) for a in others]
        return forecast([*jobs, self.job(newcomer, rung, engine)], self._engines)[-1]

    def alone(self, active: ActiveRequest, rung: int, z: float, engine: str | None) -> float:
        """Returns what a request's own steps take on an idle engine."""
        (finish,) = forecast([self.job(active, rung, engine)], self._engines)
        return finish.mean + z * sqrt(finish.variance)

    def on_time_with(
        self,
        newcomer: ActiveRequest,
        rung: int,
        others: Sequence[ActiveRequest],
        rungs: Mapping[ActiveRequest, int],
        margins: tuple[float, float],
        *,
        engine: str | None = None,
    ) -> Finish | None:
        """Returns when the newcomer is done, if it is on time and makes nobody late.

        Args:
            newcomer: Not among the others.
            rung: The newcomer's.
            others: Everybody else. Those who are late without the newcomer do not count.
            rungs: Rungs of others that are to change.
            margins: Of the newcomer and of the others, in standard deviations.
            engine: Binds the newcomer, if it is known where it will run.
        """
        jobs = [self.job(a, rungs.get(a, a.rung)) for a in others]
        jobs.append(self.job(newcomer, rung, engine))
        *after, finish = forecast(jobs, self._engines)
        if self._late(newcomer, rung, finish, margins[0]):
            return None
        late = [
            place
            for place, (a, end) in enumerate(zip(others, after, strict=True))
            if self._late(a, rungs.get(a, a.rung), end, margins[1])
        ]
        if late:
            before = self.before(others)
            if any(not self._late(others[i], others[i].rung, before[i], margins[1]) for i in late):
                return None
        return finish

    def before(self, others: Sequence[ActiveRequest]) -> Sequence[Finish]:
        """Forecasts everybody without the newcomer; asked again, it does not compute again."""
        if self._before is None:
            self._before = forecast([self.job(a, a.rung) for a in others], self._engines)
        return self._before

    def _late(self, active: ActiveRequest, rung: int, finish: Finish, margin: float) -> bool:
        if active.abandoned or active.parent is not None:
            return False
        left = active.limit_at - active.delivery_s[rung] - self._now
        return finish.mean + margin * sqrt(finish.variance) > left

    def _left(self, active: ActiveRequest, rung: int, engine: str) -> Sequence[TimedStep]:
        if active.engine is None:
            steps = self.timed(engine, active.routes[rung])
            return steps if self._fine else self._merged(engine, active.routes[rung], steps)
        steps = self.timed(engine, active.plan.steps)[active.position :]
        if active.pace != 1.0 and steps:
            steps = _paced(steps, active.pace)
        if active.step_since is not None:
            lane, _, variance = steps[0]
            key = active.plan.steps[active.position].cost_key
            left = residual(
                self.cost(engine, key),
                self._now - active.step_since,
                active.plan.limit[active.position] if active.plan.limit else inf,
            )
            steps = [(lane, left, variance), *steps[1:]]
        if active.abandoned or (active.parent is not None and not self._extras):
            return steps[:1] if active.step_since is not None else ()
        return steps


def residual(cost: Cost, elapsed: float, limit: float) -> float:
    """Returns the expected seconds that a running step still takes; never 0.

    Up to its 95 %: the rest of the mean, or half of what is left to the 95 %. Past its prediction,
    it is expected to take as long again, at most what is left of its limit.

    Args:
        cost: What was predicted.
        elapsed: Seconds that it has run.
        limit: Seconds that it may run.
    """
    late = cost.quantile(1.645)
    if elapsed < late:
        return max(cost.mean - elapsed, 0.5 * (late - elapsed))
    return max(0.1 * cost.mean, min(limit - elapsed, elapsed))


def _paced(steps: Sequence[TimedStep], pace: float) -> Sequence[TimedStep]:
    """Stretches the first steps that share a lane."""
    lane, count = steps[0][0], 0
    while count < len(steps) and steps[count][0] == lane:
        count += 1
    stretched = [(name, pace * mean, pace * pace * spread) for name, mean, spread in steps[:count]]
    return [*stretched, *steps[count:]]
