"""When candidates run: in the time that a request has left, on engines that nobody else needs.

Requests that have their first object are improved one candidate after the other. A candidate goes
last in every lane. Once another request needs its engine, it is taken back: only the step that runs
goes on to its end, because nothing can interrupt it.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

from generation.plan import Part, Plan, Rung, Step
from miner.request import ActiveRequest, Request
from miner.scheduling.board import Board, Lanes
from miner.scheduling.candidates import Candidate, CandidateLimits, Candidates
from miner.scheduling.estimates import Estimates
from protocol.tasks import TextTask

AT_ONCE = 2
"""Candidates on one engine at a time: while one is drawn, another is lifted."""

LAST_S = -1e9
"""A head start that puts a candidate behind every request."""

Z = 2.0
"""How sure it must be that a candidate ends in time, in standard deviations."""

Route = Callable[[Request, Rung, Part], tuple[Step, ...]]
"""The steps that a request takes at a rung."""


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
        route: Route,
        *,
        estimates: Estimates,
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._route = route
        self._estimates = estimates
        self._clock = clock
        self._arrivals = itertools.count(2**61)
        self._requests: dict[str, ActiveRequest] = {}
        self._whole: dict[tuple[Step, ...], tuple[Step, ...]] = {}
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

    def end(self, extra: ActiveRequest, worth: float | None) -> None:
        """Takes in what a candidate's plan made: a rating, a score, or None if it failed."""
        if extra.parent is not None and extra.parent.candidates and extra.candidate:
            extra.parent.candidates.end(extra.candidate, worth)

    def take_back(self, extra: ActiveRequest) -> None:
        """Takes in that a candidate was given up before its end."""
        if extra.parent is not None and extra.parent.candidates and extra.candidate:
            extra.parent.candidates.take_back(extra.candidate)

    def leave(self, active: ActiveRequest) -> None:
        """Takes out a request that is answered."""
        self._requests.pop(active.request.id, None)

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
                self.take_back(extra)
        on_engine = {
            name: [a for a in extras if a.engine == name] if name not in busy else []
            for name in engines
        }
        if not self._requests:
            return due
        board = Board(self._estimates, self._clock(), engines, len(admitted), extras=True)
        counted = [a for a in admitted if a not in due.taken_back or a.step_since is not None]
        for active in sorted(self._requests.values(), key=_least_improved):
            self._improve(active, board, counted, on_engine, busy, due)
        return due

    def _improve(
        self,
        active: ActiveRequest,
        board: Board,
        admitted: list[ActiveRequest],
        on_engine: dict[str, list[ActiveRequest]],
        busy: Collection[str],
        due: Improvement,
    ) -> None:
        """Starts candidates of one request as long as an engine has a place, or ends it."""
        candidates = active.candidates
        if candidates is None:
            return
        waits = False
        while not self._stopped and self._clock() < self.stop_at(active):
            candidate = candidates.next()
            if candidate is None:
                break
            extra = self._extra(active, candidate)
            fitting = [
                name for name in on_engine if self._fits(board, extra, candidate, name, admitted)
            ]
            free = [n for n in fitting if n not in busy and len(on_engine[n]) < AT_ONCE]
            if not free:
                waits = bool(fitting)
                break
            engine = min(free, key=lambda name: len(on_engine[name]))
            candidates.start(candidate)
            extra.engine = engine
            on_engine[engine].append(extra)
            admitted.append(extra)
            due.start.append((extra, engine))
        over = self._stopped or self._clock() >= self.stop_at(active)
        if over or not (waits or candidates.running):
            due.done.append(active)

    def _extra(self, active: ActiveRequest, candidate: Candidate) -> ActiveRequest:
        """Returns a candidate as the lanes know it: a request behind all others."""
        part: Part = "object" if candidate.state == "drawn" else "picture"
        task = active.request.task
        if isinstance(task, TextTask):
            task = task.model_copy(update={"seed": candidate.seed})
        name = f"{active.request.id}#{candidate.number}{part[0]}"
        request = replace(active.request, id=name, task=task)
        steps = self._route(request, active.plan.rung, part)
        return ActiveRequest(
            request=request,
            arrival=next(self._arrivals),
            limit_at=self.stop_at(active),
            routes=(steps,),
            delivery_s=(0.0,),
            rung=0,
            plan=Plan(active.plan.rung, steps),
            head_start_s=LAST_S,
            parent=active,
            candidate=candidate,
        )

    def _fits(
        self,
        board: Board,
        extra: ActiveRequest,
        candidate: Candidate,
        engine: str,
        admitted: Sequence[ActiveRequest],
    ) -> bool:
        """Whether a candidate would end in time on an engine, its object included."""
        steps = extra.plan.steps
        if candidate.state != "drawn":
            steps += self._route(extra.request, extra.plan.rung, "object")
        # The board knows equal steps by their identity.
        whole = replace(extra, routes=(self._whole.setdefault(steps, steps),))
        finish = board.finish_of(whole, 0, admitted, engine=engine)
        return finish.mean + Z * sqrt(finish.variance) <= extra.limit_at - self._clock()


def _needs(active: ActiveRequest, engine: str) -> bool:
    """Whether a request has steps left that an engine has to run, or may."""
    unfinished = active.position < len(active.plan.steps) and not active.abandoned
    return unfinished and active.engine in (None, engine)


def _least_improved(active: ActiveRequest) -> tuple[int, tuple[float, int]]:
    made = active.candidates.made if active.candidates is not None else 0
    return made, active.turn
