"""The engines that requests can go to, and which of them a waiting one goes to. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence

from miner.request import ActiveRequest
from miner.scheduling.board import Board, Lanes
from miner.scheduling.estimates import Estimates


class EnginePool:
    """Every engine that is not lost.

    Args:
        estimates: What steps take on each of them.
        clock: Monotonic clock, in seconds.

    Attributes:
        engines: The lanes of all, by name.
        suspect: Those with a step past its limit.
    """

    def __init__(self, estimates: Estimates, clock: Callable[[], float]) -> None:
        self._estimates = estimates
        self._clock = clock
        self._far: set[str] = set()
        self._held: set[str] = set()
        self.engines: dict[str, Lanes] = {}
        self.suspect: set[str] = set()

    @property
    def usable(self) -> Mapping[str, Lanes]:
        """The engines that take requests now."""
        out = self.suspect | self._held
        return {name: lanes for name, lanes in self.engines.items() if name not in out}

    def add(self, name: str, lanes: Lanes, *, far: bool) -> None:
        """Lets an engine take requests from now on; see `Scheduler.add_engine`."""
        self.engines[name] = lanes
        if far:
            self._far.add(name)

    def hold(self, name: str) -> None:
        """Lets an engine take nothing more until it is released or removed."""
        self._held.add(name)

    def release(self, name: str) -> None:
        """Lets an engine that is held take requests again."""
        self._held.discard(name)

    def remove(self, name: str) -> None:
        """Forgets an engine."""
        self.engines.pop(name, None)
        self._held.discard(name)
        self.suspect.discard(name)

    def engine_for(self, active: ActiveRequest, admitted: Collection[ActiveRequest]) -> str | None:
        """Returns the engine that a waiting request goes to now; None if it has to wait.

        Of several that would run it at once, the one that is forecast to be done with it first.

        Args:
            active: Among the admitted.
            admitted: Everybody.
        """
        usable = self.usable
        free = [name for name in usable if self._takes(name, active, admitted)]
        if len(free) < 2:
            return free[0] if free else None
        others = [other for other in admitted if other is not active]
        board = Board(self._estimates, self._clock(), usable, len(others))
        ends = {name: board.finish_of(active, active.rung, others, engine=name) for name in free}
        return min(free, key=lambda name: ends[name].mean)

    def backlog(self, admitted: Sequence[ActiveRequest]) -> Mapping[str, float]:
        """Returns for each engine the seconds until it has done everything that it may have to do.

        A request that no engine has yet counts for all of them.
        """
        board = Board(self._estimates, self._clock(), self.engines, len(admitted))
        ends = [end.mean for end in board.before(admitted)]
        return {
            name: max(
                (
                    end
                    for active, end in zip(admitted, ends, strict=True)
                    if active.engine in (None, name)
                ),
                default=0.0,
            )
            for name in self.engines
        }

    def _takes(
        self, engine: str, active: ActiveRequest, admitted: Collection[ActiveRequest]
    ) -> bool:
        """Tells whether the lane of the first step has a place for a request."""
        lane = active.routes[active.rung][0].lane
        in_lane = [
            a
            for a in admitted
            if a.engine == engine
            and a.position < len(a.plan.steps)
            and a.plan.steps[a.position].lane == lane
        ]
        workers = self.engines[engine][lane]
        if len(in_lane) < workers:
            return True
        if engine in self._far and len(in_lane) == workers and any(map(_leaves_lane, in_lane)):
            return True
        later = [a for a in in_lane if active.turn < a.turn]
        ahead = [a for a in in_lane if a.turn < active.turn and a.step_since is None]
        # A younger request that waits or runs in the lane would otherwise go first.
        return bool(later) and not ahead


def _leaves_lane(active: ActiveRequest) -> bool:
    """Whether the step that runs is the last one before a step in another lane."""
    rest = active.plan.steps[active.position :]
    return active.step_since is not None and (len(rest) < 2 or rest[1].lane != rest[0].lane)
