"""The forecast against a simulation that is written as slowly and plainly as possible."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.forecast import Finish, LaneJob, TimedStep, forecast

GPU = {"gpu": 1}


def job(
    turn: int,
    *steps: TimedStep | tuple[str, float],
    engines: Sequence[str] = ("one",),
    running: bool = False,
) -> LaneJob:
    timed = [step if len(step) == 3 else (*step, 0.0) for step in steps]
    return LaneJob((float(turn), turn), dict.fromkeys(engines, timed), running)


def finish_times(jobs: Sequence[LaneJob], engines: Mapping[str, Mapping[str, int]]) -> list[float]:
    return [finish.mean for finish in forecast(jobs, engines)]


@dataclass
class Walker:
    """One job on its way."""

    job: LaneJob
    engine: str | None
    done: int = 0
    ends_at: float | None = None
    variance: float = 0.0
    finish: Finish | None = None

    def next_step(self, engine: str) -> TimedStep:
        return self.job.routes[engine][self.done]


def simulate(jobs: Sequence[LaneJob], engines: Mapping[str, Mapping[str, int]]) -> list[Finish]:
    """Repeats what the lanes do, one end of a step after the other."""
    walkers = [Walker(j, next(iter(j.routes)) if len(j.routes) == 1 else None) for j in jobs]
    now = variance = 0.0

    def start(walker: Walker, engine: str) -> None:
        walker.engine = engine
        _, seconds, spread = walker.next_step(engine)
        walker.ends_at, walker.variance = now + seconds, variance + spread

    def lane_of(walker: Walker) -> str:
        return walker.next_step(walker.engine or next(iter(walker.job.routes)))[0]

    def free(engine: str, lane: str, workers: int) -> bool:
        inside = [w for w in walkers if w.ends_at is not None and w.engine == engine]
        return sum(lane_of(w) == lane for w in inside) < workers

    for walker in walkers:
        if walker.job.running and walker.engine is not None:
            start(walker, walker.engine)
    while True:
        for engine, lanes in engines.items():
            for lane, workers in lanes.items():
                while free(engine, lane, workers):
                    waiting = [
                        w
                        for w in walkers
                        if w.finish is None
                        and w.ends_at is None
                        and w.engine in (None, engine)
                        and lane_of(w) == lane
                    ]
                    if not waiting:
                        break
                    start(min(waiting, key=lambda w: w.job.turn), engine)
        running = [w for w in walkers if w.ends_at is not None]
        if not running:
            return [w.finish or Finish(inf, 0.0) for w in walkers]
        ended = min(running, key=lambda w: w.ends_at or 0.0)
        now, variance = ended.ends_at or 0.0, ended.variance
        ended.ends_at, ended.done = None, ended.done + 1
        if ended.done == len(ended.job.routes[ended.engine or ""]):
            ended.finish = Finish(now, variance)


def random_route(random: Random, lanes: Sequence[str]) -> list[TimedStep]:
    # Seconds without a pattern, so that no two steps end at the same moment.
    return [
        (lane, random.uniform(0.1, 3.0), random.uniform(0.0, 1.0))
        for lane in random.choices(lanes, k=random.randint(1, 5))
    ]


def random_jobs(
    random: Random, engines: Mapping[str, Mapping[str, int]], count: int
) -> list[LaneJob]:
    """Running, bound and unbound jobs; no more run in a lane than it has workers."""
    lanes = list(next(iter(engines.values())))
    free = {(engine, lane): n for engine, of in engines.items() for lane, n in of.items()}
    jobs = []
    for index in range(count):
        turn = (random.choice([5.0, 10.0, random.uniform(0.0, 30.0)]), index)
        first = random_route(random, lanes)
        routes = {
            engine: [
                (lane, (1.0 + 0.37 * place) * seconds, spread) for lane, seconds, spread in first
            ]
            for place, engine in enumerate(engines)
        }
        running = False
        if len(engines) == 1 or random.random() < 0.6:
            engine = random.choice(list(engines))
            routes = {engine: routes[engine]}
            place = (engine, first[0][0])
            running = free[place] > 0 and random.random() < 0.4
            free[place] -= running
        jobs.append(LaneJob(turn, routes, running))
    random.shuffle(jobs)
    return jobs


ENGINES: Sequence[Mapping[str, Mapping[str, int]]] = (
    {"one": {"gpu": 1, "cutout": 1, "cpu": 2}},
    {"one": {"gpu": 1, "cpu": 2}, "two": {"gpu": 1, "cpu": 2}},
)


@pytest.mark.parametrize("engines", ENGINES, ids=["one engine", "two engines"])
@given(seed=st.integers(0, 2**32), count=st.integers(0, 14))
def test_jobs_finish_as_in_a_plain_simulation_of_the_lanes(
    engines: Mapping[str, Mapping[str, int]], seed: int, count: int
) -> None:
    jobs = random_jobs(Random(seed), engines, count)
    found, expected = forecast(jobs, engines), simulate(jobs, engines)
    assert [f.mean for f in found] == pytest.approx([f.mean for f in expected], rel=1e-12)
    assert [f.variance for f in found] == pytest.approx([f.variance for f in expected], rel=1e-9)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 14))
def test_no_lane_does_more_than_its_workers_can(seed: int, count: int) -> None:
    random, engines = Random(seed), ENGINES[0]
    jobs = random_jobs(random, engines, count)
    last = max(finish_times(jobs, engines))
    for lane, workers in engines["one"].items():
        work = sum(s for j in jobs for name, s, _ in j.routes["one"] if name == lane)
        assert last >= work / workers - 1e-9
    for found, j in zip(finish_times(jobs, engines), jobs, strict=True):
        assert found >= sum(seconds for _, seconds, _ in j.routes["one"]) - 1e-9


def test_variances_add_up_along_the_path() -> None:
    """The second waits for the first one's gpu step, not for what that does afterwards."""
    jobs = [
        job(1, ("gpu", 2.0, 0.04), ("cpu", 9.0, 7.0)),
        job(2, ("gpu", 3.0, 0.09), ("cpu", 1.0, 0.01)),
    ]
    first, second = forecast(jobs, {"one": {"gpu": 1, "cpu": 2}})
    assert (first.mean, first.variance) == pytest.approx((11.0, 7.04))
    assert (second.mean, second.variance) == pytest.approx((6.0, 0.14))
    assert sqrt(second.variance) < 0.2 + 0.3 + 0.1, "independent spreads are not added as such"


def test_the_smallest_turn_goes_first_whatever_the_order_of_the_jobs() -> None:
    late, early = job(9, ("gpu", 2.0)), job(1, ("gpu", 1.0))
    assert finish_times([late, early], {"one": GPU}) == [3.0, 1.0]


def test_nothing_that_runs_is_interrupted() -> None:
    urgent = job(1, ("gpu", 1.0))
    running = job(9, ("gpu", 5.0), ("gpu", 1.0), running=True)
    # Between two steps, the urgent one goes first.
    assert finish_times([urgent, running], {"one": GPU}) == [6.0, 7.0]


def test_a_request_between_two_steps_keeps_its_lane_before_a_younger_one() -> None:
    older = job(1, ("gpu", 1.0), ("gpu", 1.0), running=True)
    younger = job(2, ("gpu", 1.0))
    assert finish_times([younger, older], {"one": GPU}) == [3.0, 2.0]


def test_lanes_work_at_the_same_time() -> None:
    jobs = [job(1, ("gpu", 2.0), ("cpu", 2.0)), job(2, ("gpu", 2.0), ("cpu", 2.0))]
    assert finish_times(jobs, {"one": {"gpu": 1, "cpu": 1}}) == [4.0, 6.0]


def test_a_lane_runs_as_many_steps_at_once_as_it_has_workers() -> None:
    jobs = [job(turn, ("cpu", 1.0)) for turn in range(5)]
    assert finish_times(jobs, {"one": {"cpu": 2}}) == [1.0, 1.0, 2.0, 2.0, 3.0]


def test_an_engine_that_is_not_there_never_finishes() -> None:
    lost = job(1, ("gpu", 1.0), engines=("lost",))
    either = job(2, ("gpu", 1.0), engines=("lost", "one"))
    assert forecast([lost, either], {"one": GPU}) == [Finish(inf, 0.0), Finish(1.0, 0.0)]
    assert finish_times([either], {}) == [inf]


def test_a_job_without_steps_is_done() -> None:
    assert finish_times([job(1)], {"one": GPU}) == [0.0]


def test_an_unbound_job_takes_the_first_engine_that_is_free() -> None:
    engines = {"one": GPU, "two": GPU}
    busy = [
        job(1, ("gpu", 5.0), engines=("one",), running=True),
        job(2, ("gpu", 3.0), engines=("two",), running=True),
    ]
    waiting = job(3, ("gpu", 1.0), engines=("one", "two"))
    assert finish_times([*busy, waiting], engines) == [5.0, 3.0, 4.0]
    assert finish_times([waiting, replace(waiting, turn=(4.0, 4))], engines) == [1.0, 1.0]


def test_an_unbound_job_takes_as_long_as_its_engine_needs() -> None:
    routes: dict[str, list[TimedStep]] = {"one": [("gpu", 1.0, 0.0)], "two": [("gpu", 4.0, 0.0)]}
    jobs = [LaneJob((1.0, 1), routes), LaneJob((2.0, 2), routes)]
    assert finish_times(jobs, {"one": GPU, "two": GPU}) == [1.0, 4.0]
