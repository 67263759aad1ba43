"""What the guard says once an engine is free for a request, and while its steps run."""

from dataclasses import replace
from math import inf, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.plan import Plan
from miner.scheduling.board import residual
from miner.scheduling.estimates import Cost
from miner.scheduling.guard import Guard, Margins
from miner.scheduling.queueing import FairShares
from miner.scheduling.watchdog import LIMIT_FLOOR_S, step_limit
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
    learned,
    make_active,
    make_guard,
)
from tests.support.fakes import Clock

ENGINES = {"one": LANES}
MARGINS = Margins()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return make_guard(clock, learned(clock))


def needed(clock: Clock, rung: int, margin: float) -> float:
    costs = [learned(clock).cost("one", step.cost_key) for step in ROUTES[rung]]
    spread = sqrt(sum(cost.variance for cost in costs))
    return sum(cost.mean for cost in costs) + margin * spread + DELIVERY_S


def test_a_request_starts_at_a_better_rung_if_the_machine_has_caught_up(
    clock: Clock, guard: Guard
) -> None:
    active = make_active(clock, left_s=20.0, rung=LOWEST)
    assert guard.choose(active, "one", [active], ENGINES).rung == BEST


def test_a_request_starts_at_a_lower_rung_if_the_machine_has_fallen_behind(
    clock: Clock, guard: Guard
) -> None:
    left = needed(clock, MIDDLE, MARGINS.better) + 0.01
    active = make_active(clock, left_s=left, rung=BEST)
    assert guard.choose(active, "one", [active], ENGINES).rung == MIDDLE


def test_a_better_rung_is_not_taken_at_the_cost_of_others(clock: Clock, guard: Guard) -> None:
    active = make_active(clock, left_s=needed(clock, BEST, MARGINS.better) + 0.1)
    behind = make_active(clock, left_s=needed(clock, BEST, MARGINS.better) + 0.2, caller="b")
    assert guard.choose(active, "one", [active], ENGINES).rung == BEST
    assert guard.choose(active, "one", [active, behind], ENGINES).rung == MIDDLE


def test_a_flood_gets_its_better_rungs_only_from_its_own_share(clock: Clock) -> None:
    shares = FairShares(clock)
    guard = make_guard(clock, learned(clock), shares)
    for caller in ("flood", "modest"):
        shares.note(caller)
    first, *rest = [make_active(clock, left_s=29.0 + n / 10, caller="flood") for n in range(9)]
    assert guard.choose(first, "one", [first, *rest], ENGINES).rung == BEST
    shares.book("flood", 60.0)
    assert guard.choose(first, "one", [first, *rest], ENGINES).rung == MIDDLE
    assert guard.choose(first, "one", [first], ENGINES).rung == BEST


def test_a_waiting_request_is_dropped_once_its_lowest_rung_does_not_fit(
    clock: Clock, guard: Guard
) -> None:
    enough = needed(clock, LOWEST, max(MARGINS.admit, MARGINS.dispatch))
    active = make_active(clock, left_s=enough + 0.01)
    assert guard.choose(active, "one", [active], ENGINES).rung == LOWEST
    short = make_active(clock, left_s=needed(clock, LOWEST, min(0.0, MARGINS.dispatch)) - 0.01)
    verdict = guard.choose(short, "one", [short], ENGINES)
    assert (verdict.rung, verdict.reason_code) == (None, "predicted_late")
    assert f"of {BUDGET_S:.1f} s" in verdict.reason


def test_a_request_that_was_admitted_starts_although_a_younger_one_becomes_late(
    clock: Clock, guard: Guard
) -> None:
    active = make_active(clock, left_s=5.0, caller="a")
    younger = make_active(clock, left_s=5.1, caller="b")
    assert guard.choose(active, "one", [active, younger], ENGINES).rung == LOWEST


def test_a_probe_starts_whatever_the_estimates_say(clock: Clock) -> None:
    guard = make_guard(clock, learned(clock, factor=20.0))
    probe = make_active(clock)
    probe.probe = True
    assert guard.choose(probe, "one", [probe], ENGINES).rung == LOWEST


@pytest.mark.parametrize("rung", range(len(LADDER)))
def test_a_step_may_start_as_long_as_the_rest_of_the_plan_fits(
    clock: Clock, guard: Guard, rung: int
) -> None:
    active = make_active(clock)
    plan = guard.plan(active, "one", rung, Plan(LADDER[rung], ROUTES[rung]))
    assert plan.rung == LADDER[rung]
    assert plan.steps == ROUTES[rung]
    rest = [sum(SECONDS[s.cost_key] for s in plan.steps[i:]) for i in range(len(plan.steps))]
    if MARGINS.start == 0.0:
        assert plan.latest_start == pytest.approx(rest)
    assert all(latest > 0.0 for latest in plan.latest_start)
    assert sorted(plan.latest_start, reverse=True) == list(plan.latest_start)
    assert len(set(plan.latest_start)) == len(plan.steps)
    assert plan.limit == tuple(
        step_limit(learned(clock).cost("one", step.cost_key)) for step in plan.steps
    )
    assert all(limit >= LIMIT_FLOOR_S for limit in plan.limit)


costs = st.builds(Cost, mean=st.floats(1e-3, 100.0), variance=st.floats(0.0, 1e4))


@given(cost=costs, elapsed=st.floats(0.0, 1e4), limit=st.floats(1e-3, 1e4))
def test_a_running_step_is_never_expected_to_end_at_once(
    cost: Cost, elapsed: float, limit: float
) -> None:
    assert residual(cost, elapsed, limit) > 0.0


@given(cost=costs, elapsed=st.floats(0.0, 1e4), limit=st.floats(1e-3, 1e4))
def test_a_step_past_its_prediction_may_take_what_is_left_of_its_limit(
    cost: Cost, elapsed: float, limit: float
) -> None:
    if elapsed >= cost.quantile(1.645):
        left = residual(cost, elapsed, limit)
        assert left <= max(limit - elapsed, 0.1 * cost.mean)
        assert residual(cost, elapsed, inf) >= elapsed


def test_a_step_within_its_prediction_takes_the_rest_of_it() -> None:
    cost = Cost(10.0, 1.0)
    assert residual(cost, 0.0, 80.0) == 10.0
    assert residual(cost, 4.0, 80.0) == 6.0
    assert 0.5 < residual(cost, 10.0, 80.0) < 1.645
    assert residual(cost, 20.0, 80.0) == 20.0
    assert residual(cost, 75.0, 80.0) == 5.0


def test_a_step_that_overruns_delays_those_behind_it(clock: Clock, guard: Guard) -> None:
    stuck = make_active(clock, left_s=5.0, caller="a", engine="one", ran_s=10.0, guard=guard)
    newcomer = make_active(clock, left_s=8.0)
    assert guard.admit(newcomer, [stuck], ENGINES).rung is None
    stuck.step_since = clock.now
    assert guard.admit(newcomer, [stuck], ENGINES).rung == LOWEST


def test_a_request_between_two_steps_is_hopeless_once_the_rest_takes_too_long(
    clock: Clock, guard: Guard
) -> None:
    enough = SECONDS["pack"] + DELIVERY_S
    active = make_active(clock, left_s=enough + 0.3, engine="one", position=1, guard=guard)
    assert guard.hopeless(active) is None
    clock.now += 0.6
    assert guard.hopeless(active) == "0.5 s of steps are left, and 0.2 s"
    clock.now += 1.0
    assert guard.hopeless(active) == "0.5 s of steps are left, and 0.0 s"


def test_a_request_is_not_hopeless_before_its_first_and_after_its_last_step(
    clock: Clock, guard: Guard
) -> None:
    for position in (0, 2):
        active = make_active(clock, left_s=0.1, engine="one", position=position, guard=guard)
        assert guard.hopeless(active) is None


def test_no_step_has_to_leave_time_for_an_optional_one(clock: Clock, guard: Guard) -> None:
    draw, pack = ROUTES[LOWEST]
    plain = guard.plan(make_active(clock), "one", LOWEST, Plan(LADDER[LOWEST], (draw, pack)))
    longer = (draw, pack, replace(pack, stage="score", optional=True))
    scored = guard.plan(make_active(clock), "one", LOWEST, Plan(LADDER[LOWEST], longer))
    assert scored.latest_start[:2] == plain.latest_start
    assert scored.latest_start[2] >= SECONDS["pack"]
    starts = [
        guard.latest_start(make_active(clock, routes=(route,), rung=0), ["one"])
        for route in (plain.steps, longer)
    ]
    assert starts[0] == starts[1]


def test_a_request_that_has_no_time_left_for_an_optional_step_alone_is_not_hopeless(
    clock: Clock, guard: Guard
) -> None:
    route = (*ROUTES[LOWEST], replace(ROUTES[LOWEST][1], stage="score", optional=True))
    active = make_active(
        clock, left_s=0.1, engine="one", position=2, guard=guard, routes=(route,) * len(LADDER)
    )
    assert guard.hopeless(active) is None


def test_a_waiting_request_without_time_for_an_optional_step_is_not_dropped(
    clock: Clock, guard: Guard
) -> None:
    route = (*ROUTES[LOWEST], replace(ROUTES[BEST][0], stage="score", optional=True))
    active = make_active(clock, left_s=6.0, routes=(route,), rung=0)
    assert guard.choose(active, "one", [active], ENGINES).rung == 0


def test_a_probe_is_never_hopeless(clock: Clock, guard: Guard) -> None:
    probe = make_active(clock, left_s=0.1, engine="one", position=1, guard=guard)
    probe.probe = True
    assert guard.hopeless(probe) is None


def test_steps_that_were_slow_in_a_lane_tell_how_slow_the_next_ones_there_are(
    clock: Clock, guard: Guard
) -> None:
    route = (ROUTES[LOWEST][0], ROUTES[LOWEST][0], ROUTES[LOWEST][1])
    rest = SECONDS["draw:lowest"] + SECONDS["pack"]
    active = make_active(
        clock,
        left_s=rest + 1.0 + DELIVERY_S,
        engine="one",
        position=1,
        guard=guard,
        routes=(route, route, route),
    )
    assert guard.hopeless(active) is None
    # The first took three times as long; half of that is believed of the second.
    active.block_ran, active.block_predicted = 3 * SECONDS["draw:lowest"], SECONDS["draw:lowest"]
    assert guard.hopeless(active) == "4.5 s of steps are left, and 3.5 s"
