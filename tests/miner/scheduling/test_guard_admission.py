"""At which rung the guard admits a request, and at whose cost."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.request import ActiveRequest
from miner.scheduling.board import residual
from miner.scheduling.estimates import PRIOR_CV, Estimates
from miner.scheduling.forecast import LaneJob, TimedStep, forecast
from miner.scheduling.guard import PROBE_S, Guard, Margins
from miner.scheduling.queueing import FairShares
from tests.miner.scheduling.toys import (
    BEST,
    BUDGET_S,
    DELIVERY_S,
    LADDER,
    LANES,
    LOWEST,
    MIDDLE,
    ROUTES,
    SECONDS,
    Shop,
    learned,
    make_active,
    make_guard,
    make_request,
)
from tests.support.fakes import Clock

ENGINES = {"one": LANES}
MARGINS = Margins()
REASON = re.compile(
    r"(?:probe: )?p\d+ ([\d.]+) queue \+ ([\d.]+) steps \+ ([\d.]+) delivery = ([\d.]+) of "
    r"([\d.]+) s"
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return make_guard(clock, learned(clock))


def needed(estimates: Estimates, rung: int) -> float:
    """Seconds from the arrival to the answer on an idle machine, as sure as the guard wants."""
    costs = [estimates.cost("one", step.cost_key) for step in ROUTES[rung]]
    margin = MARGINS.admit if rung == LOWEST else MARGINS.better
    spread = sqrt(sum(cost.variance for cost in costs))
    return sum(cost.mean for cost in costs) + margin * spread + DELIVERY_S


@pytest.mark.parametrize("rung", [BEST, MIDDLE, LOWEST])
def test_a_request_gets_the_highest_rung_that_fits(clock: Clock, guard: Guard, rung: int) -> None:
    seconds = needed(learned(clock), rung)
    fits = guard.admit(make_active(clock, left_s=seconds + 0.01), [], ENGINES)
    assert (fits.rung, fits.reason_code) == (rung, "ok")
    short = guard.admit(make_active(clock, left_s=seconds - 0.01), [], ENGINES)
    assert short.rung == (None if rung == LOWEST else rung + 1)


def test_a_request_that_does_not_fit_even_alone_is_dropped_with_the_numbers(
    clock: Clock, guard: Guard
) -> None:
    verdict = guard.admit(make_active(clock, left_s=2.0), [], ENGINES)
    assert (verdict.rung, verdict.reason_code) == (None, "predicted_late")
    assert REASON.fullmatch(verdict.reason)
    assert not verdict.lowered


def test_rungs_that_have_the_same_steps_count_as_one(clock: Clock, guard: Guard) -> None:
    """An image task's rungs may differ in the picture alone, which it does without."""
    routes = (ROUTES[LOWEST], ROUTES[LOWEST], ROUTES[LOWEST])
    verdict = guard.admit(make_active(clock, routes=routes), [], ENGINES)
    assert verdict.rung == BEST


def test_without_an_engine_nothing_is_admitted(clock: Clock, guard: Guard) -> None:
    verdict = guard.admit(make_active(clock), [], {})
    assert (verdict.rung, verdict.reason_code) == (None, "predicted_late")
    assert verdict.reason == "no engine can be used at present"


def test_two_engines_admit_more_than_one(clock: Clock) -> None:
    guard = make_guard(clock, learned(clock, "one", "two"))
    busy = make_active(clock, left_s=9.0, caller="a", engine="one", ran_s=0.0, guard=guard)
    newcomer = make_active(clock, left_s=4.0)
    assert guard.admit(newcomer, [busy], {"one": LANES}).rung is None
    assert guard.admit(newcomer, [busy], {"one": LANES, "two": LANES}).rung == LOWEST


def test_waiting_requests_are_lowered_before_a_newcomer_is_dropped(
    clock: Clock, guard: Guard
) -> None:
    waiting = [make_active(clock, left_s=16.0, caller=str(n), rung=BEST) for n in range(2)]
    verdict = guard.admit(make_active(clock, left_s=16.1), waiting, ENGINES)
    assert verdict.rung == LOWEST
    # No deeper than it takes.
    assert verdict.lowered == dict.fromkeys(waiting, MIDDLE)


def test_waiting_requests_are_lowered_for_a_newcomer_whose_rungs_do_not_differ(
    clock: Clock, guard: Guard
) -> None:
    """An image task has fewer distinct rungs than the text tasks that wait."""
    waiting = [make_active(clock, left_s=16.0, caller=str(n), rung=BEST) for n in range(2)]
    newcomer = make_active(clock, left_s=16.1, routes=[ROUTES[LOWEST]] * 3)
    verdict = guard.admit(newcomer, waiting, ENGINES)
    assert verdict.rung is not None
    assert verdict.lowered == dict.fromkeys(waiting, MIDDLE)


def test_a_request_with_an_engine_keeps_its_rung(clock: Clock, guard: Guard) -> None:
    running = make_active(
        clock, left_s=16.0, caller="a", rung=BEST, engine="one", ran_s=0.0, guard=guard
    )
    waiting = make_active(clock, left_s=16.0, caller="b", rung=BEST)
    verdict = guard.admit(make_active(clock, left_s=16.1), [running, waiting], ENGINES)
    assert verdict.lowered == {waiting: MIDDLE}


def test_a_newcomer_is_dropped_when_not_even_the_lowest_rungs_fit(
    clock: Clock, guard: Guard
) -> None:
    waiting = [make_active(clock, left_s=10.6, caller=str(n)) for n in range(4)]
    newcomer = make_active(clock, left_s=9.0)
    verdict = guard.admit(newcomer, waiting, ENGINES)
    assert (verdict.rung, verdict.reason_code) == (None, "predicted_late")


def test_one_that_is_late_anyway_does_not_keep_others_out(clock: Clock, guard: Guard) -> None:
    hopeless = make_active(clock, left_s=1.0, caller="a", engine="one", ran_s=0.0, guard=guard)
    assert guard.admit(make_active(clock), [hopeless], ENGINES).rung is not None


def test_an_answered_request_keeps_its_lane_but_no_time(clock: Clock, guard: Guard) -> None:
    left = make_active(clock, left_s=4.0, caller="a", engine="one", ran_s=0.0, guard=guard)
    left.abandoned = True
    # Two seconds of its step and two own ones do not fit into four.
    assert guard.admit(make_active(clock, left_s=4.0), [left], ENGINES).rung is None
    assert guard.admit(make_active(clock, left_s=7.0), [left], ENGINES).rung == LOWEST


def test_what_an_answered_request_would_have_done_next_does_not_count(
    clock: Clock, guard: Guard
) -> None:
    draw, pack = ROUTES[BEST]
    left = make_active(clock, engine="one", ran_s=5.0, guard=guard, routes=[(draw, draw, pack)] * 3)
    newcomer = make_active(clock, left_s=8.0, caller="a")
    left.limit_at = newcomer.limit_at - 0.1
    assert guard.admit(newcomer, [left], ENGINES).rung is None
    left.abandoned = True
    assert guard.admit(newcomer, [left], ENGINES).rung is not None


def test_the_steps_of_one_stage_are_slow_together(clock: Clock) -> None:
    """Four steps with a spread of 15 % each have one of 15 % together, not of 7.5 %."""
    guard = make_guard(clock, learned(clock))
    draw = ROUTES[LOWEST][0]
    route = tuple(replace(draw, index=index) for index in range(4))
    mean = 4 * SECONDS["draw:lowest"]
    enough = mean * (1.0 + MARGINS.admit * PRIOR_CV) + DELIVERY_S
    for left_s, rung in ((enough + 0.01, BEST), (enough - 0.01, None)):
        active = make_active(clock, left_s=left_s, routes=[route] * 3)
        assert guard.admit(active, [], ENGINES).rung == rung


def test_the_reason_says_how_far_a_caller_is_beyond_its_share(clock: Clock) -> None:
    shares = FairShares(clock)
    guard = make_guard(clock, learned(clock), shares)
    shares.note("caller")
    waiting = [make_active(clock) for _ in range(7)]
    verdict = guard.admit(make_active(clock), waiting, ENGINES)
    assert (verdict.rung, verdict.reason_code) == (None, "caller_share")
    assert verdict.reason == "1.0 s beyond the 15.0 s that one caller may book"


def test_another_caller_is_let_in_where_one_has_filled_its_share(clock: Clock) -> None:
    shares = FairShares(clock)
    guard = make_guard(clock, learned(clock), shares)
    for caller in ("flood", "modest"):
        shares.note(caller)
    waiting = [make_active(clock, caller="flood") for _ in range(10)]
    assert guard.admit(make_active(clock, caller="flood"), waiting, ENGINES).rung is None
    assert guard.admit(make_active(clock, caller="modest"), waiting, ENGINES).rung is not None


def test_who_is_crowded_out_goes_first_unless_that_makes_somebody_late(clock: Clock) -> None:
    shares = FairShares(clock)
    guard = make_guard(clock, learned(clock), shares)
    for caller in ("flood", "modest"):
        shares.note(caller)
    shares.book("flood", 60.0)
    relaxed = [make_active(clock, left_s=25.0, caller="flood") for _ in range(5)]
    newcomer = make_active(clock, caller="modest")
    verdict = guard.admit(newcomer, relaxed, ENGINES)
    newcomer.head_start_s = verdict.head_start_s
    assert newcomer.turn < min(active.turn for active in relaxed)
    tight = [make_active(clock, left_s=12.9, caller="flood") for _ in range(5)]
    assert guard.admit(make_active(clock, caller="modest"), tight, ENGINES).head_start_s == 0.0


def test_a_machine_that_seems_too_slow_is_probed_once_nothing_was_observed_for_a_while() -> None:
    shop = Shop(estimates=lambda clock: learned(clock, factor=15.0))
    request = make_request(at=shop.clock.now)
    _, verdict = shop.scheduler.arrive(request)
    assert (verdict.rung, verdict.probe) == (None, False)
    shop.clock.now += PROBE_S
    probe, verdict = shop.scheduler.arrive(make_request(at=shop.clock.now))
    assert (verdict.rung, verdict.probe) == (LOWEST, True)
    assert verdict.reason.startswith("probe: ")
    # One is enough.
    assert shop.scheduler.arrive(make_request("other", at=shop.clock.now))[1].rung is None
    (dispatch,) = shop.next().dispatches
    assert dispatch.active is probe
    assert dispatch.plan.latest_start == (0.0, 0.0), "it is not given up half way"


@pytest.mark.parametrize("factor", [12.0, 30.0])
def test_one_probe_heals_a_warm_up_that_was_far_too_slow(factor: float) -> None:
    shop = Shop(estimates=lambda clock: learned(clock, factor=factor))
    shop.clock.now += PROBE_S
    probe = shop.arrive()
    assert probe.probe
    assert shop.dispatched() == [(probe, "one")]
    shop.run(probe)
    _, verdict = shop.scheduler.arrive(make_request(at=shop.clock.now))
    assert verdict.rung is not None
    assert not verdict.probe


def test_a_request_whose_time_is_up_is_no_probe(clock: Clock) -> None:
    guard = make_guard(clock, learned(clock, factor=12.0))
    clock.now += PROBE_S
    verdict = guard.admit(make_active(clock, left_s=0.4 * DELIVERY_S), [], ENGINES)
    assert (verdict.rung, verdict.probe) == (None, False)


def test_no_probe_is_let_in_while_others_are_served(clock: Clock) -> None:
    guard = make_guard(clock, learned(clock, factor=12.0))
    clock.now += PROBE_S
    busy = make_active(clock, caller="a", engine="one", ran_s=0.0, guard=guard)
    verdict = guard.admit(make_active(clock), [busy], ENGINES)
    assert (verdict.rung, verdict.probe) == (None, False)


def left_of(active: ActiveRequest, rung: int, now: float, estimates: Estimates) -> list[TimedStep]:
    """The steps that a request still has to go through, as the guard must count them."""
    planned = active.plan.steps[active.position :]
    steps = active.routes[rung] if active.engine is None else planned
    costs = [estimates.cost("one", step.cost_key) for step in steps]
    timed = [(step.lane, cost.mean, cost.variance) for step, cost in zip(steps, costs, strict=True)]
    if active.step_since is not None:
        limit = active.plan.limit[active.position]
        rest = residual(costs[0], now - active.step_since, limit)
        timed[0] = (timed[0][0], rest, costs[0].variance)
    return timed


def late(
    requests: Sequence[ActiveRequest],
    rungs: Mapping[ActiveRequest, int],
    now: float,
    estimates: Estimates,
    margin: float,
) -> list[bool]:
    """Whether each request is late by forecast."""
    jobs = [
        LaneJob(
            active.turn,
            {"one": left_of(active, rungs.get(active, active.rung), now, estimates)},
            active.step_since is not None,
        )
        for active in requests
    ]
    return [
        finish.mean + margin * sqrt(finish.variance) > active.deadline - now + 1e-9
        for active, finish in zip(requests, forecast(jobs, ENGINES), strict=True)
    ]


def random_requests(random: Random, clock: Clock, guard: Guard) -> list[ActiveRequest]:
    """Requests that wait, have an engine, or run; one in `gpu` and two in `cpu` at most."""
    free = dict(LANES)
    requests = []
    for number in range(random.randint(0, 9)):
        state = random.choice(["waiting", "waiting", "between", "running"])
        position, rung = random.choice([0, 1]), random.choice([BEST, MIDDLE, LOWEST])
        lane = ROUTES[rung][position].lane
        ran = random.uniform(0.0, 9.0) if state == "running" and free[lane] else None
        free[lane] -= ran is not None
        requests.append(
            make_active(
                clock,
                left_s=random.uniform(1.0, BUDGET_S),
                caller=f"caller {number % 4}",
                rung=rung,
                engine=None if state == "waiting" else "one",
                position=0 if state == "waiting" else position,
                ran_s=ran,
                guard=guard,
            )
        )
    return requests


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_an_accepted_newcomer_makes_nobody_late_and_a_dropped_one_would_have(seed: int) -> None:
    random, clock = Random(seed), Clock()
    estimates, shares = learned(clock), FairShares(clock)
    guard = make_guard(clock, estimates, shares)
    admitted = random_requests(random, clock, guard)
    for name in ("newcomer", *(f"caller {n}" for n in range(random.randint(0, 4)))):
        shares.note(name)
    if random.random() < 0.5:
        shares.note("caller 0")
        shares.book("caller 0", 60.0)
    newcomer = make_active(clock, left_s=random.uniform(1.0, BUDGET_S), caller="newcomer")

    def newly_late(rungs: Mapping[ActiveRequest, int], margin: float) -> list[bool]:
        """Who is late only with the newcomer, which is the last."""
        before = late(admitted, {}, clock.now, estimates, MARGINS.admit)
        after = late([*admitted, newcomer], rungs, clock.now, estimates, MARGINS.admit)
        own = late([*admitted, newcomer], rungs, clock.now, estimates, margin)[-1]
        return [new and not old for new, old in zip(after, before, strict=False)] + [own]

    verdict = guard.admit(newcomer, admitted, ENGINES)
    if verdict.rung is None:
        assert verdict.reason_code == "predicted_late"
        lowest = {active: LOWEST for active in admitted if active.engine is None}
        for rungs in ({}, lowest):
            newcomer.rung = LOWEST
            assert any(newly_late(rungs, MARGINS.admit))
        return
    for active, rung in verdict.lowered.items():
        assert active.engine is None
        assert active.rung < rung <= LOWEST
        assert verdict.rung == LOWEST
    newcomer.rung, newcomer.head_start_s = verdict.rung, verdict.head_start_s
    lowered = {**verdict.lowered, newcomer: verdict.rung}
    margin = MARGINS.admit if verdict.rung == LOWEST else MARGINS.better
    assert not any(newly_late(lowered, margin))


@given(seed=st.integers(0, 2**32))
def test_the_numbers_of_a_reason_add_up(seed: int) -> None:
    random, clock = Random(seed), Clock()
    guard = make_guard(clock, learned(clock))
    admitted = random_requests(random, clock, guard)
    newcomer = make_active(clock, left_s=random.uniform(1.0, BUDGET_S), caller="newcomer")
    verdict = guard.admit(newcomer, admitted, ENGINES)
    match = REASON.fullmatch(verdict.reason)
    assert match, verdict.reason
    queue, steps, delivery, total, budget = map(float, match.groups())
    assert queue + steps + delivery == pytest.approx(total, abs=0.16)
    assert verdict.predicted_s <= total - delivery + 0.1, "the mean is expected"
    assert budget == BUDGET_S
    assert delivery == DELIVERY_S
    name = LADDER[LOWEST if verdict.rung is None else verdict.rung].name
    assert steps >= SECONDS[f"draw:{name}"]
