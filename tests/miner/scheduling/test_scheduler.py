"""Which request an engine gets next, and what becomes of those that wait, run, leave or hang."""

from dataclasses import replace

import pytest

from generation.plan import StepEvent
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import DELIVERY_FLOOR_S, Estimates
from miner.scheduling.watchdog import RECOVERY_S
from tests.miner.scheduling.toys import (
    BEST,
    BUDGET_S,
    LADDER,
    LANES,
    LOWEST,
    ROUTES,
    SECONDS,
    Shop,
    learned,
    make_request,
)
from tests.support.fakes import Clock


@pytest.fixture
def shop() -> Shop:
    return Shop()


def test_a_request_starts_at_once_on_an_idle_machine(shop: Shop) -> None:
    active = shop.arrive()
    dispatch = shop.only()
    assert (dispatch.active, dispatch.engine) == (active, "one")
    assert dispatch.plan is active.plan
    assert dispatch.plan.steps == ROUTES[active.rung]
    assert len(dispatch.plan.latest_start) == len(dispatch.plan.limit) == len(dispatch.plan.steps)
    assert shop.dispatched() == []


def test_waiting_requests_start_in_the_order_of_their_deadlines(shop: Shop) -> None:
    shop.arrive("busy", allowed_s=19.0)
    ((busy, _),) = shop.dispatched()
    late, early, middle = (shop.arrive(str(s), allowed_s=s) for s in (28.0, 20.0, 24.0))
    shop.run(busy)
    for expected in (early, middle, late):
        assert shop.dispatched() == [(expected, "one")]
        shop.run(expected)


def test_of_equal_deadlines_the_first_to_arrive_starts_first(shop: Shop) -> None:
    first, second = shop.arrive("a"), shop.arrive("b")
    assert first.limit_at == second.limit_at
    assert shop.dispatched() == [(first, "one")]
    shop.run(first)
    assert shop.dispatched() == [(second, "one")]


def test_the_next_request_starts_once_the_lane_is_free(shop: Shop) -> None:
    first, second = shop.arrive("a"), shop.arrive("b")
    assert shop.dispatched() == [(first, "one")]
    shop.start(first)
    shop.clock.now += 1.0
    assert shop.dispatched() == []
    shop.end(first, after=5.0)
    # The first one is in another lane now.
    assert shop.dispatched() == [(second, "one")]


def test_an_earlier_deadline_is_sent_to_an_engine_whose_lane_a_younger_request_holds(
    shop: Shop,
) -> None:
    """It waits there and takes the lane before the younger one's next step, if it has one."""
    younger = shop.arrive("a", allowed_s=30.0)
    assert shop.dispatched() == [(younger, "one")]
    shop.start(younger)
    urgent = shop.arrive("b", allowed_s=15.0)
    assert shop.dispatched() == [(urgent, "one")]
    later = shop.arrive("c", allowed_s=20.0)
    assert later.turn > urgent.turn
    assert shop.dispatched() == [], "one that waits there is enough"


def test_a_caller_that_another_one_crowds_out_starts_first(shop: Shop) -> None:
    shop.arrive("modest", allowed_s=1.0 + SECONDS["draw:best"])
    ((first, _),) = shop.dispatched()
    shop.run(first)
    flood = [shop.arrive("flood") for _ in range(4)]
    for active in flood[:2]:
        assert shop.dispatched() == [(active, "one")]
        shop.run(active)
    flood += [shop.arrive("flood") for _ in range(2)]
    modest = shop.arrive("modest")
    assert modest.limit_at >= max(active.limit_at for active in flood)
    assert shop.dispatched() == [(modest, "one")]


def test_two_engines_are_both_used() -> None:
    shop = Shop("one", "two")
    first, second, third = (shop.arrive(name) for name in "abc")
    assert shop.dispatched() == [(first, "one"), (second, "two")]
    shop.start(first)
    shop.start(second)
    assert shop.dispatched() == []
    # The third goes to the one that is free first, whichever that is.
    shop.end(second, after=3.0)
    assert shop.dispatched() == [(third, "two")]


def test_a_slower_engine_gets_what_fits_it() -> None:
    """Each engine is planned with its own seconds."""

    def estimates(clock: Clock) -> Estimates:
        both = learned(clock, "one")
        both.set_prior("two", {key: 3.0 * value for key, value in SECONDS.items()})
        return both

    shop = Shop("one", "two", estimates=estimates)
    shop.arrive("a")
    shop.arrive("b")
    fast, slow = shop.next().dispatches
    assert slow.plan.limit[0] > fast.plan.limit[0]
    assert slow.plan.latest_start[-1] == pytest.approx(3.0 * fast.plan.latest_start[-1])


def test_a_waiting_request_takes_the_lower_rung_that_makes_room_for_a_newcomer(
    shop: Shop,
) -> None:
    waiting, rungs = [shop.arrive("0", allowed_s=16.0)], [BEST]
    while [active.rung for active in waiting] == rungs:
        newcomer = shop.arrive(str(len(waiting)), allowed_s=16.0)
        waiting.append(newcomer)
        rungs.append(newcomer.rung)
    assert newcomer.rung == LOWEST
    assert all(active.rung >= rung for active, rung in zip(waiting, rungs, strict=True))
    for active in waiting:
        assert active.plan.rung == LADDER[active.rung]
        assert active.plan.steps == ROUTES[active.rung]


def test_a_waiting_request_leaves_at_its_latest_start(shop: Shop) -> None:
    busy = shop.arrive("a", allowed_s=19.0)
    shop.dispatched()
    shop.start(busy)
    waiting = shop.arrive("b", allowed_s=20.0)
    assert waiting.latest_start < waiting.deadline - SECONDS["draw:lowest"]
    shop.clock.now = waiting.latest_start - 0.001
    assert shop.dispatched() == []
    shop.clock.now = waiting.latest_start
    (given_up,) = shop.next().given_up
    assert given_up.active is waiting
    assert given_up.reason_code == "predicted_late_stage"
    assert "waited" in given_up.reason
    assert list(shop.scheduler.active) == [busy]


def test_a_request_that_no_longer_fits_when_a_lane_is_free_makes_way_for_the_next(
    shop: Shop,
) -> None:
    first = shop.arrive("a")
    assert shop.dispatched() == [(first, "one")]
    shop.start(first)
    tight, relaxed = shop.arrive("b", allowed_s=14.0), shop.arrive("c", allowed_s=29.0)
    shop.end(first, after=12.5)
    due = shop.next()
    assert [(g.active, g.reason_code) for g in due.given_up] == [(tight, "predicted_late_stage")]
    assert [dispatch.active for dispatch in due.dispatches] == [relaxed]


def test_a_request_between_steps_is_given_up_once_it_is_hopeless(shop: Shop) -> None:
    active = shop.arrive()
    shop.dispatched()
    shop.start(active)
    shop.end(active, after=29.7)
    (given_up,) = shop.next().given_up
    assert (given_up.active, given_up.reason_code) == (active, "predicted_late_stage")
    assert list(shop.scheduler.active) == []


def test_a_request_that_leaves_while_its_step_runs_keeps_the_lane_until_that_ends(
    shop: Shop,
) -> None:
    leaving, waiting = shop.arrive("a"), shop.arrive("b")
    assert shop.dispatched() == [(leaving, "one")]
    shop.start(leaving)
    shop.scheduler.leave(leaving)
    assert list(shop.scheduler.active) == [waiting]
    assert shop.dispatched() == []
    shop.end(leaving, after=3.0)
    assert shop.dispatched() == [(waiting, "one")]
    assert list(shop.scheduler.active) == [waiting]
    assert shop.scheduler.remove_engine("one") == [waiting], "the other one is forgotten"


def test_a_request_that_leaves_between_steps_frees_its_place_at_once(shop: Shop) -> None:
    leaving, waiting = shop.arrive("a"), shop.arrive("b")
    assert shop.dispatched() == [(leaving, "one")]
    shop.scheduler.leave(leaving)
    assert shop.dispatched() == [(waiting, "one")]


def test_a_request_that_leaves_before_it_starts_is_forgotten(shop: Shop) -> None:
    shop.scheduler.leave(shop.arrive())
    assert shop.dispatched() == []
    assert shop.scheduler.wake_up_at() is None


def test_an_engine_that_is_removed_returns_the_requests_that_it_had() -> None:
    shop = Shop("one", "two")
    first, second, waiting = (shop.arrive(name) for name in "abc")
    shop.dispatched()
    shop.start(first)
    shop.start(second)
    assert shop.scheduler.remove_engine("one") == [first]
    assert list(shop.scheduler.active) == [second, waiting]
    shop.end(second, after=6.0)
    assert shop.dispatched() == [(waiting, "two")]


def test_without_its_last_engine_a_scheduler_admits_nothing(shop: Shop) -> None:
    shop.scheduler.remove_engine("one")
    _, verdict = shop.scheduler.arrive(make_request(at=shop.clock.now))
    assert (verdict.rung, verdict.reason_code) == (None, "predicted_late")
    shop.scheduler.add_engine("one", LANES)
    shop.arrive()
    assert len(shop.dispatched()) == 1


def test_an_engine_past_a_limit_is_suspect_and_gets_nothing_until_the_step_ends() -> None:
    shop = Shop("one", "two")
    stuck, other = shop.arrive("a"), shop.arrive("b")
    shop.dispatched()
    shop.start(stuck)
    shop.run(other)
    assert shop.scheduler.overruns() == []
    shop.clock.now += stuck.plan.limit[0]
    (overrun,) = shop.scheduler.overruns()
    assert overrun.active is stuck
    for name in "cd":
        shop.arrive(name)
    assert [engine for _, engine in shop.dispatched()] == ["two"]
    shop.end(stuck, after=1.0)
    assert shop.scheduler.overruns() == []
    assert [dispatch.engine for dispatch in shop.next().dispatches] == ["one"]


def test_while_all_engines_are_suspect_nothing_is_admitted(shop: Shop) -> None:
    stuck = shop.arrive()
    shop.dispatched()
    shop.start(stuck)
    shop.clock.now += stuck.plan.limit[0] + 1.0
    assert shop.scheduler.overruns()
    _, verdict = shop.scheduler.arrive(make_request("b", at=shop.clock.now))
    assert verdict.reason == "no engine can be used at present"


def test_a_step_that_goes_on_after_its_request_was_answered_can_still_overrun(shop: Shop) -> None:
    stuck = shop.arrive()
    shop.dispatched()
    shop.start(stuck)
    shop.scheduler.leave(stuck)
    shop.clock.now += stuck.plan.limit[0] + 1.0
    assert [overrun.active for overrun in shop.scheduler.overruns()] == [stuck]


def test_nothing_wakes_an_idle_scheduler(shop: Shop) -> None:
    assert shop.scheduler.wake_up_at() is None


def test_a_scheduler_wakes_for_latest_starts_limits_and_the_end_of_recovery(shop: Shop) -> None:
    running = shop.arrive("a")
    assert shop.scheduler.wake_up_at() == running.latest_start
    shop.dispatched()
    shop.start(running)
    started = shop.clock.now
    limit_at = started + running.plan.limit[0]
    assert shop.scheduler.wake_up_at() == limit_at
    waiting = shop.arrive("b", allowed_s=20.0)
    assert waiting.deadline < limit_at
    assert shop.scheduler.wake_up_at() == waiting.latest_start
    shop.scheduler.leave(waiting)
    shop.clock.now = limit_at
    assert shop.scheduler.wake_up_at() == limit_at + RECOVERY_S


def test_a_deadline_is_what_the_caller_allows_less_the_delivery(shop: Shop) -> None:
    at = shop.clock.now
    short, long, unsaid = (shop.arrive(allowed_s=s) for s in (10.0, 99.0, None))
    assert short.limit_at == at + 10.0
    assert long.limit_at == unsaid.limit_at == at + BUDGET_S
    assert DELIVERY_FLOOR_S <= short.limit_at - short.deadline < 0.2


def test_time_that_passed_before_the_arrival_counts(shop: Shop) -> None:
    request = make_request(at=shop.clock.now - 25.0)
    active, verdict = shop.scheduler.arrive(request)
    assert active.limit_at == shop.clock.now + 5.0
    assert verdict.rung == LOWEST
    _, verdict = shop.scheduler.arrive(make_request("b", at=shop.clock.now - 40.0))
    assert verdict.rung is None


def test_estimates_learn_from_the_steps_that_ran(shop: Shop) -> None:
    active = shop.arrive()
    shop.dispatched()
    shop.run(active, slowness=1.5)
    assert active.ran == {"draw": 9.0, "pack": 0.75}
    assert shop.estimates.cost("one", "draw:best").mean == pytest.approx(7.5, rel=0.01)


def test_estimates_do_not_learn_from_steps_that_were_never_run(shop: Shop) -> None:
    active = shop.arrive()
    shop.dispatched()
    before = shop.estimates.export()
    shop.scheduler.on_event(active, StepEvent("skipped", 0, active.plan.steps[0]))
    assert shop.estimates.export() == before
    assert active.ran == {}


def test_a_step_that_fails_early_does_not_make_the_machine_look_fast(shop: Shop) -> None:
    active = shop.arrive()
    shop.dispatched()
    shop.start(active)
    shop.end(active, after=0.1, kind="failed")
    assert shop.estimates.cost("one", "draw:best").mean == SECONDS["draw:best"]


def test_steps_of_one_lane_tell_the_pace_of_the_next_ones() -> None:
    draw, pack = ROUTES[LOWEST]
    shop = Shop(routes=[(draw, draw, pack)] * 3)
    active = shop.arrive()
    shop.dispatched()
    shop.start(active)
    shop.end(active, after=3 * SECONDS["draw:lowest"])
    assert active.pace == pytest.approx(2.0)
    shop.start(active)
    shop.end(active, after=SECONDS["draw:lowest"])
    assert active.pace == 1.0, "the next one is in another lane"


def test_a_short_first_step_tells_little_of_the_long_ones_after_it() -> None:
    draw, pack = ROUTES[LOWEST]
    prompt = replace(draw, stage="prompt", cost_key="prompt:new")
    shop = Shop(routes=[(prompt, draw, pack)] * 3)
    shop.estimates.set_prior("one", {"prompt:new": 0.001})
    active = shop.arrive()
    shop.dispatched()
    shop.start(active)
    shop.end(active, after=0.08)
    assert 1.0 < active.pace < 2.0


def test_a_candidate_that_is_started_again_is_not_taken_for_its_run_before() -> None:
    shop = Shop(candidates=CandidateLimits(max=2), routes=[ROUTES[LOWEST]] * len(LADDER))
    first = shop.arrive()
    shop.only()
    for step in first.plan.steps:
        shop.start(first)
        shop.end(first, after=SECONDS[step.cost_key])
    shop.scheduler.made(first, [0.5])
    before = shop.only().active
    shop.start(before)
    newcomer = shop.arrive()
    assert shop.next().taken_back == [before]
    shop.scheduler.leave(newcomer)  # Its caller is gone before the step has ended.
    again = shop.only().active
    assert again.group[0] is before.group[0]
    shop.end(before, after=1.0)
    assert again in shop.scheduler.active
    shop.arrive()
    assert shop.next().taken_back == [again]


def test_a_candidate_that_ends_on_an_engine_that_is_lost_does_not_count() -> None:
    shop = Shop(
        "one", "two", candidates=CandidateLimits(max=2), routes=[ROUTES[LOWEST]] * len(LADDER)
    )
    first = shop.arrive()
    shop.only()
    for step in first.plan.steps:
        shop.start(first)
        shop.end(first, after=SECONDS[step.cost_key])
    shop.scheduler.made(first, [0.5])
    lost = shop.only()
    shop.start(lost.active)
    assert shop.scheduler.remove_engine(lost.engine) == []
    again = shop.only()
    assert (again.active.group[0], again.engine != lost.engine) == (lost.active.group[0], True)
    assert not shop.scheduler.counts(lost.active)
    shop.scheduler.made(lost.active, [0.9])
    candidate = again.active.group[0]
    assert candidate is not None
    assert (candidate.state, candidate.rating) == ("drawing", None)
    assert shop.scheduler.counts(again.active)
    shop.scheduler.made(again.active, [0.4])
    assert (candidate.state, candidate.rating, candidate.score) == ("drawn", 0.4, None)
