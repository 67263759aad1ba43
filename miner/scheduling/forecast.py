"""When every admitted request will be done: list scheduling over the lanes of every engine.

The forecast repeats what the lanes do: each takes the waiting step with the earliest turn once a
worker is free, and nothing that runs is interrupted. Requests that no engine has yet are taken, in
the same order, by the first engine whose lane is free.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from generation.plan import Turn

TimedStep = tuple[str, float, float]
"""Lane, mean seconds and variance of one step."""


@dataclass(frozen=True, eq=False)
class LaneJob:
    """One request as the forecast sees it.

    Attributes:
        turn: Its place in every lane.
        routes: Steps that are left, by engine that may run them; one engine once it is bound.
        running: Whether the first step occupies its lane now; its seconds are what is left of it.
    """

    turn: Turn
    routes: Mapping[str, Sequence[TimedStep]]
    running: bool = False


@dataclass(frozen=True)
class Finish:
    """When a job is done, in seconds from now: mean and variance."""

    mean: float
    variance: float


_NOW, _NEVER = Finish(0.0, 0.0), Finish(float("inf"), 0.0)


class _Lane:
    __slots__ = ("engine", "free", "name", "unbound", "waiting")

    def __init__(self, engine: str, name: str, free: int) -> None:
        self.engine, self.name, self.free = engine, name, free
        self.waiting: list[tuple[Turn, int, TimedStep]] = []
        self.unbound: list[tuple[Turn, int]] = []


def forecast(jobs: Sequence[LaneJob], engines: Mapping[str, Mapping[str, int]]) -> list[Finish]:
    """Predicts when each job is done.

    Args:
        jobs: All running and waiting requests; bound ones come from one engine's lanes.
        engines: By name, how many steps each lane runs at once; fastest first.

    Returns:
        One value per job, in order. A job without steps is done now; one that no engine can run
        is never done.
    """
    lanes = {
        (engine, name): _Lane(engine, name, workers)
        for engine, workers_of in engines.items()
        for name, workers in workers_of.items()
    }
    pool: dict[str, list[tuple[Turn, int]]] = {}
    for lane in lanes.values():
        lane.unbound = pool.setdefault(lane.name, [])
    finish: list[Finish | None] = [None] * len(jobs)
    left: list[Iterator[TimedStep]] = [iter(())] * len(jobs)
    home: list[str] = [""] * len(jobs)
    events: list[tuple[float, int, float, int, _Lane]] = []
    sequence = 0

    def begin(lane: _Lane, index: int, step: TimedStep, now: float, variance: float) -> None:
        nonlocal sequence
        lane.free -= 1
        heappush(events, (now + step[1], sequence, variance + step[2], index, lane))
        sequence += 1

    def fill(lane: _Lane, now: float, variance: float) -> None:
        waiting, unbound = lane.waiting, lane.unbound
        while lane.free > 0 and (waiting or unbound):
            if unbound and (not waiting or unbound[0] < waiting[0][:2]):
                index = heappop(unbound)[1]
                home[index] = lane.engine
                left[index] = iter(jobs[index].routes[lane.engine])
                begin(lane, index, next(left[index]), now, variance)
            else:
                _, index, step = heappop(waiting)
                begin(lane, index, step, now, variance)

    for index, job in enumerate(jobs):
        routes = [(engine, route) for engine, route in job.routes.items() if engine in engines]
        if not routes:
            finish[index] = _NEVER
        elif not routes[0][1]:
            finish[index] = _NOW
        elif len(routes) > 1:
            heappush(pool[routes[0][1][0][0]], (job.turn, index))
        else:
            home[index], route = routes[0]
            left[index] = iter(route)
            step = next(left[index])
            lane = lanes[home[index], step[0]]
            if job.running:
                begin(lane, index, step, 0.0, 0.0)
            else:
                heappush(lane.waiting, (job.turn, index, step))
    for lane in lanes.values():
        fill(lane, 0.0, 0.0)
    while events:
        now, _, variance, index, lane = heappop(events)
        lane.free += 1
        following = next(left[index], None)
        if following is None:
            finish[index] = Finish(now, variance)
        else:
            # Joined before the lane is filled: a request that is nearly finished keeps its thread.
            joined = lanes[home[index], following[0]]
            heappush(joined.waiting, (jobs[index].turn, index, following))
            if joined is not lane and joined.free:
                fill(joined, now, variance)
        if lane.waiting or lane.unbound:
            fill(lane, now, variance)
    return [done or _NEVER for done in finish]
