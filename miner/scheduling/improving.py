"""When candidates run: in the time that a request has left, on engines that nobody else needs.

Requests that have their first object are improved one candidate after the other. A candidate goes
last in every lane. Once another request needs its engine, it is taken back: only the step that runs
goes on to its end, because nothing can interrupt it.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Protocol

from generation.plan import Part, Plan, Rung, Step
from miner.request import ActiveRequest, Request
from miner.scheduling.board import Board, Lanes
from miner.scheduling.candidates import Candidate, CandidateLimits, Candidates
from miner.scheduling.estimates import Estimates
from miner.scheduling.forecast import Finish
from protocol.tasks import TextTask

AT_ONCE = 2
"""Groups of candidates on one engine at a time: while one is drawn, another is lifted."""

FIRST_ARRIVAL = 2**61
"""The arrival of the first candidate: after those of all requests."""

LAST_S = -1e9
"""A head start that puts a candidate behind every request."""

Z = 2.0
"""How sure it must be that a candidate ends in time, in standard deviations."""

_NOW = Finish(0.0, 0.0)


class RequestRoute(Protocol):
    """Gives the steps that a request takes at a rung."""

    def __call__(
        self,
        request: Request,
        rung: Rung,
        part: Part,
        pictures: int = 1,
        engine: str | None = None,
    ) -> tuple[Step, ...]:
        """Returns the steps; a plan of the part "picture" may draw several together.

        Engines remember different prompts; without a name, the steps are those of any of them.
        """


@dataclass
class Improvement:
    """What the driver does now: start these candidates, cancel those, answer these requests."""

    start: list[tuple[ActiveRequest, str]] = field(default_factory=list)
    taken_back: list[ActiveRequest] = field(default_factory=list)
    done: list[ActiveRequest] = field(default_factory=list)


class Improver:
    """Decides which candidate runs where.

    Args:
        limits: How much is spent on candidates.
        route: Gives the steps of a request at a rung.
        estimates: What steps take.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        limits: CandidateLimits,
        route: RequestRoute,
        *,
        estimates: Estimates,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._route = route
        self._estimates = estimates
        self._clock = clock
        self._starts = itertools.count()
        self._requests: dict[str, ActiveRequest] = {}
        self._whole: dict[tuple[Step, ...], tuple[Step, ...]] = {}
        self._ways: dict[tuple[str, Part], tuple[Step, ...]] = {}
        self._stopped = False

    def wake_up_at(self) -> float | None:
        """Returns when `next` has news although nothing happens."""
        return min(map(self.stop_at, self._requests.values()), default=None)

    def begin(self, active: ActiveRequest, score: float | None) -> None:
        """Takes over a request whose first object is made."""
        request = active.request
        limits = self._limits
        if request.candidates is not None:
            limits = replace(limits, max=min(limits.max, request.candidates))
        if score is None or not isinstance(request.task, TextTask):
            # The picture of an image task is given: no seed changes much of its object.
            limits = replace(limits, max=1)
        active.candidates = Candidates(limits, request.task.seed)
        active.candidates.begin(score or 0.0)
        self._requests[request.id] = active

    def end(self, extra: ActiveRequest, worths: Sequence[float | None]) -> None:
        """Takes in what a plan of candidates made: ratings, a score, or None for what failed."""
        if extra.parent is not None and extra.parent.candidates:
            extra.parent.candidates.end(extra.group, worths)

    def take_back(self, extra: ActiveRequest) -> None:
        """Takes in that candidates were given up before their end."""
        if extra.parent is not None and extra.parent.candidates:
            extra.parent.candidates.take_back(extra.group)

    def leave(self, active: ActiveRequest) -> None:
        """Takes out a request that is answered."""
        self._requests.pop(active.request.id, None)
        self._ways.pop((active.request.id, "picture"), None)
        self._ways.pop((active.request.id, "object"), None)

    def stop(self) -> None:
        """Starts no candidate any more: every request is answered with what it has."""
        self._stopped = True

    def stop_at(self, active: ActiveRequest) -> float:
        """Returns when a request stops being improved, in monotonic seconds."""
        received = active.request.received_at
        spend = self._limits.spend * (active.limit_at - received)
        return min(received + spend, active.deadline)

    def next(self, admitted: Sequence[ActiveRequest], engines: Mapping[str, Lanes]) -> Improvement:
        """Says what to do now.

        Args:
            admitted: Everybody, candidates included.
            engines: The lanes of the engines that can be used.
        """
        due = Improvement()
        busy = {
            name for name in engines if any(a.parent is None and _needs(a, name) for a in admitted)
        }
        extras = [a for a in admitted if a.parent is not None and not a.abandoned]
        for extra in extras:
            if extra.engine in busy or extra.engine not in engines:
                due.taken_back.append(extra)
                extra.abandoned = True  # Of its steps, the board counts the one that runs.
                self.take_back(extra)
        on_engine = {
            name: [a for a in extras if a.engine == name] if name not in busy else []
            for name in engines
        }
        if not self._requests:
            return due
        counted = [a for a in admitted if not a.abandoned or a.step_since is not None]
        board = Board(self._estimates, self._clock(), engines, len(counted), extras=True)
        ready: dict[str, Finish] = {}
        if busy:
            for other, end in zip(counted, board.before(counted), strict=True):
                for name in busy:
                    if other.parent is None and _needs(other, name):
                        ready[name] = max(ready.get(name, end), end, key=lambda each: each.mean)
        room = _Room(board, counted, on_engine, ready)
        for active in sorted(self._requests.values(), key=_least_improved):
            self._improve(active, room, due)
        return due

    def _improve(self, active: ActiveRequest, room: "_Room", due: Improvement) -> None:
        """Starts candidates of one request as long as an engine has a place, or ends it."""
        candidates = active.candidates
        if candidates is None:
            return
        left = self.stop_at(active) - self._clock()
        over = left <= 0.0 or self._stopped or candidates.good_enough
        waits = False
        # Only for the best rung does the warm-up prepare an engine to draw several together.
        together = candidates.limits.together if active.rung == 0 else 1
        while not over and (group := candidates.next(together)):
            free = room.free()
            if not free:
                waits = room.fits_later(self._cheapest(active, candidates), left)
                break
            # If several pictures take too long, one may fit, or the object of one that is drawn.
            for each in dict.fromkeys((group, group[:1], candidates.last() or group)):
                extra, whole = self._extra(active, each)
                engine = room.fits(whole, free, left)
                if engine is not None:
                    break
            if engine is None:
                break
            candidates.start(extra.group)
            extra.engine = engine
            room.take(extra, engine)
            due.start.append((extra, engine))
        if over or not (waits or candidates.running):
            due.done.append(active)

    def _cheapest(self, active: ActiveRequest, candidates: Candidates) -> Sequence[Step]:
        """Returns the fewest steps to a further object of a request."""
        part: Part = "object" if candidates.last() else "picture"
        # Kept: this is asked for all that wait whenever a step of anybody begins or ends.
        key = (active.request.id, part)
        if key not in self._ways:
            rung = active.plan.rung
            steps = self._route(active.request, rung, "object")
            if part == "picture":
                steps = self._route(active.request, rung, "picture") + steps
                steps = self._whole.setdefault(steps, steps)
            self._ways[key] = steps
        return self._ways[key]

    def _extra(
        self, active: ActiveRequest, group: tuple[Candidate, ...]
    ) -> tuple[ActiveRequest, ActiveRequest]:
        """Returns candidates as the lanes know them: a request behind all others.

        The second one is the same with all steps to the first object, to be forecast.
        """
        candidate = group[0]
        part: Part = "object" if candidate.state == "drawn" else "picture"
        task = active.request.task
        if isinstance(task, TextTask):
            task = task.model_copy(update={"seed": candidate.seed})
        start = next(self._starts)
        # A candidate that is started again must not be taken for its run before, of which a step
        # may still be running.
        name = f"{active.request.id}#{candidate.number}{part[0]}{start}"
        request = replace(active.request, id=name, task=task)
        rung = active.plan.rung
        steps = self._route(request, rung, part, len(group))
        seeds = tuple(each.seed for each in group) if part == "picture" else ()
        extra = ActiveRequest(
            request=request,
            arrival=FIRST_ARRIVAL + start,
            limit_at=self.stop_at(active),
            routes=(steps,),
            delivery_s=(0.0,),
            rung=0,
            plan=Plan(rung, steps, seeds=seeds),
            head_start_s=LAST_S,
            parent=active,
            group=group,
        )
        if part == "object":
            return extra, extra
        steps += self._route(request, rung, "object")
        # The board knows equal steps by their identity.
        return extra, replace(extra, routes=(self._whole.setdefault(steps, steps),))


@dataclass
class _Room:
    """Where candidates can go now.

    Attributes:
        board: The machine.
        admitted: Everybody, and what was started since.
        on_engine: The candidates that each engine has.
        ready: When others do not need an engine any more, of those that they need now.
    """

    board: Board
    admitted: list[ActiveRequest]
    on_engine: Mapping[str, list[ActiveRequest]]
    ready: Mapping[str, Finish]
    _ends: dict[tuple[str, int], float] = field(default_factory=dict)

    def free(self) -> list[str]:
        """Returns the engines that have a place for a candidate, the emptiest first."""
        free = [
            name
            for name, extras in self.on_engine.items()
            if name not in self.ready and len(extras) < AT_ONCE
        ]
        return sorted(free, key=lambda name: len(self.on_engine[name]))

    def fits(self, whole: ActiveRequest, engines: Sequence[str], left: float) -> str | None:
        """Returns the first engine that would end a candidate within the seconds left."""
        for engine in engines:
            finish = self.board.finish_of(whole, 0, self.admitted, engine=engine)
            if _surely(finish) <= left:
                return engine
        return None

    def fits_later(self, steps: Sequence[Step], left: float) -> bool:
        """Returns whether an engine would end these steps in time once others do not need it.

        If only candidates have its places, one of them may be free at once.
        """
        return any(self._end(engine, steps) <= left for engine in self.on_engine)

    def _end(self, engine: str, steps: Sequence[Step]) -> float:
        key = (engine, id(steps))
        if key not in self._ends:
            timed = self.board.timed(engine, steps)
            others = self.ready.get(engine, _NOW)
            mean = others.mean + sum(seconds for _, seconds, _ in timed)
            variance = others.variance + sum(spread for _, _, spread in timed)
            self._ends[key] = _surely(Finish(mean, variance))
        return self._ends[key]

    def take(self, extra: ActiveRequest, engine: str) -> None:
        """Counts a candidate from now on."""
        self.on_engine[engine].append(extra)
        self.admitted.append(extra)


def _surely(finish: Finish) -> float:
    return finish.mean + Z * sqrt(finish.variance)


def _needs(active: ActiveRequest, engine: str) -> bool:
    """Whether a request has steps left that an engine has to run, or may."""
    unfinished = active.position < len(active.plan.steps) and not active.abandoned
    return unfinished and active.engine in (None, engine)


def _least_improved(active: ActiveRequest) -> tuple[int, tuple[float, int]]:
    made = active.candidates.made if active.candidates is not None else 0
    return made, active.turn
