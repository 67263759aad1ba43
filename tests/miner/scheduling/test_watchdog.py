"""When a running step makes its engine suspect, and when the engine counts as lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.request import ActiveRequest
from miner.scheduling.estimates import Cost
from miner.scheduling.guard import Guard
from miner.scheduling.watchdog import LIMIT_FLOOR_S, RECOVERY_S, overruns, step_limit
from tests.miner.scheduling.toys import learned, make_active, make_guard
from tests.support.fakes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def guard(clock: Clock) -> Guard:
    return make_guard(clock, learned(clock))


@pytest.fixture
def running(clock: Clock, guard: Guard) -> ActiveRequest:
    return make_active(clock, engine="one", ran_s=0.0, guard=guard)


def test_a_step_past_its_limit_is_an_overrun(clock: Clock, running: ActiveRequest) -> None:
    limit = running.plan.limit[0]
    clock.now += limit
    assert overruns([running], clock.now) == []
    clock.now += 1.0
    (overrun,) = overruns([running], clock.now)
    assert overrun.active is running
    assert overrun.stage == "draw"
    assert (overrun.ran_s, overrun.limit_s) == pytest.approx((limit + 1.0, limit))
    assert str(overrun) == f"draw runs for {limit + 1.0:.1f} s, its limit is {limit:.1f} s"


def test_an_engine_is_lost_once_the_time_to_come_back_is_over(
    clock: Clock, running: ActiveRequest
) -> None:
    clock.now += running.plan.limit[0] + RECOVERY_S - 0.1
    assert [overrun.lost for overrun in overruns([running], clock.now)] == [False]
    clock.now += 0.2
    assert [overrun.lost for overrun in overruns([running], clock.now)] == [True]


def test_each_step_has_a_limit_of_its_own(clock: Clock, guard: Guard) -> None:
    second = make_active(clock, engine="one", position=1, ran_s=0.0, guard=guard)
    assert second.plan.limit[1] < second.plan.limit[0]
    clock.now += 0.5 * (second.plan.limit[0] + second.plan.limit[1])
    assert [overrun.stage for overrun in overruns([second], clock.now)] == ["pack"]


def test_what_waits_does_not_overrun(clock: Clock, guard: Guard) -> None:
    requests = [make_active(clock), make_active(clock, engine="one", position=1, guard=guard)]
    assert overruns(requests, clock.now + 1e6) == []


def test_a_plan_without_limits_does_not_overrun(clock: Clock) -> None:
    unlimited = make_active(clock, engine="one", ran_s=0.0)
    assert unlimited.plan.limit == ()
    assert overruns([unlimited], clock.now + 1e6) == []


@given(mean=st.floats(1e-6, 1e3), variance=st.floats(0.0, 1e6))
def test_a_limit_leaves_room_for_a_stalled_host(mean: float, variance: float) -> None:
    cost = Cost(mean, variance)
    assert step_limit(cost) >= LIMIT_FLOOR_S
    assert step_limit(cost) >= 4.0 * mean
