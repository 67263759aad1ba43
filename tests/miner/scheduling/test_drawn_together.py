"""Candidates that are drawn together: they are started, taken back, lost and failed as one."""

from generation.plan import Plan
from miner.request import ActiveRequest
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.scheduler import Dispatch
from tests.miner.scheduling.toys import BEST, BUDGET_S, LADDER, LOWEST, ROUTES, SECONDS, Shop

FIRST_S = 2.5
"""The first object. A further picture takes as long, its object too, and three pictures 6.5 s."""


def make_shop(*engines: str, candidates: int = 7, spend: float = 0.8) -> Shop:
    limits = CandidateLimits(max=candidates, spend=spend, together=3)
    routes = [ROUTES[LOWEST]] * len(LADDER)
    return Shop(*engines, candidates=limits, routes=routes, several=ROUTES[BEST])


def improvable(shop: Shop) -> ActiveRequest:
    active = shop.arrive("first")
    shop.only()
    run(shop, active)
    shop.scheduler.made(active, [0.5])
    return active


def run(shop: Shop, active: ActiveRequest) -> None:
    for step in active.plan.steps:
        shop.start(active)
        shop.end(active, after=SECONDS[step.cost_key])


def numbers(dispatches: list[Dispatch]) -> list[list[int]]:
    return [[each.number for each in dispatch.active.group] for dispatch in dispatches]


def test_a_plan_has_the_seeds_of_all_its_pictures_and_runs_their_steps() -> None:
    shop = make_shop()
    improvable(shop)
    started = shop.next().dispatches
    assert numbers(started) == [[1, 2, 3], [4, 5, 6]]
    for dispatch in started:
        assert dispatch.plan.seeds == tuple(each.seed for each in dispatch.active.group)
        assert dispatch.plan.steps == ROUTES[BEST]
        assert len(dispatch.plan.latest_start) == len(dispatch.plan.limit) == len(ROUTES[BEST])


def test_an_object_is_made_of_one_picture_and_its_plan_has_no_seeds() -> None:
    shop = make_shop(candidates=4)
    improvable(shop)
    drawing = shop.only().active
    run(shop, drawing)
    shop.scheduler.made(drawing, [0.2, 0.9, 0.4])
    lifted = shop.next().dispatches
    assert numbers(lifted) == [[2], [3]]
    assert [dispatch.plan.seeds for dispatch in lifted] == [(), ()]


def test_what_is_taken_back_together_is_drawn_again_together() -> None:
    shop = make_shop(candidates=4)
    improvable(shop)
    before = shop.only().active
    shop.start(before)
    newcomer = shop.arrive("newcomer")
    assert shop.next().taken_back == [before]
    shop.scheduler.made(before, [0.9, 0.9, 0.9])  # Too late: its end was not awaited.
    shop.end(before, after=1.0)
    shop.scheduler.leave(newcomer)
    again = shop.only()
    assert numbers([again]) == [[1, 2, 3]]
    assert again.plan.seeds == before.plan.seeds
    assert {(each.state, each.rating) for each in again.active.group} == {("drawing", None)}


def test_what_an_engine_takes_with_it_is_drawn_together_by_another() -> None:
    shop = make_shop("one", "two", candidates=4)
    improvable(shop)
    lost = shop.only()
    shop.start(lost.active)
    assert shop.scheduler.remove_engine(lost.engine) == []
    again = shop.only()
    assert (again.engine != lost.engine, again.plan.seeds) == (True, lost.plan.seeds)
    shop.scheduler.made(lost.active, [0.9, 0.9, 0.9])
    assert {each.state for each in again.active.group} == {"drawing"}


def test_pictures_whose_plan_fails_are_drawn_again_one_by_one() -> None:
    shop = make_shop()
    improvable(shop)
    failing, other = (dispatch.active for dispatch in shop.next().dispatches)
    shop.start(failing)
    shop.end(failing, after=1.0, kind="failed")
    shop.scheduler.made(failing, [None, None, None])
    again = shop.only()
    assert (numbers([again]), again.plan.seeds) == ([[1]], failing.plan.seeds[:1])
    run(shop, other)
    shop.scheduler.made(other, [0.2, None, 0.4])
    assert numbers(shop.next().dispatches) == [[6]]


def test_with_no_time_for_several_pictures_one_is_drawn() -> None:
    """9 s of steps to an object of several pictures, 5 s to that of one; 8 s are left."""
    shop = make_shop(spend=(FIRST_S + 8.0) / BUDGET_S)
    improvable(shop)
    started = shop.next().dispatches
    assert numbers(started)[0] == [1]
    assert started[0].plan.steps == ROUTES[LOWEST]


def test_below_the_best_rung_pictures_are_drawn_one_by_one() -> None:
    """The warm-up prepares no engine to draw several at another rung."""
    shop = make_shop()
    first = shop.arrive("first")
    shop.only()
    run(shop, first)
    first.rung, first.plan = LOWEST, Plan(LADDER[LOWEST], first.plan.steps)
    shop.scheduler.made(first, [0.5])
    assert numbers(shop.next().dispatches) == [[1], [2]]
