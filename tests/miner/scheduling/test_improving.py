"""Whether a request that could be improved waits for an engine, and what is started last."""

import pytest

from generation.plan import Step
from miner.request import ActiveRequest
from miner.scheduling.candidates import CandidateLimits
from tests.miner.scheduling.toys import BUDGET_S, LADDER, LOWEST, ROUTES, SECONDS, Shop

PACK_FIRST = (Step("pack", "cpu", "pack"), Step("draw", "gpu", "draw:lowest"))


def improvable(shop: Shop, score: float = 0.5) -> ActiveRequest:
    """A request whose first object is made, 2.5 s after its arrival."""
    active = shop.arrive("first")
    shop.only()
    run(shop, active)
    shop.scheduler.made(active, [score])
    return active


def run(shop: Shop, active: ActiveRequest) -> None:
    for step in active.plan.steps:
        shop.start(active)
        shop.end(active, after=SECONDS[step.cost_key])


def make_shop(
    *engines: str,
    limits: CandidateLimits | None = None,
    route: tuple[Step, ...] = ROUTES[LOWEST],
) -> Shop:
    return Shop(*engines, candidates=limits or CandidateLimits(max=9), routes=[route] * len(LADDER))


@pytest.mark.parametrize(("others", "waits"), [(1, True), (5, True), (8, False)])
def test_a_request_waits_for_others_only_if_a_candidate_would_still_fit_after_them(
    others: int, waits: bool
) -> None:
    """A candidate takes 5 s of the 21.5 s that are left, and each of the others 2 s of the GPU."""
    shop = make_shop()
    first = improvable(shop)
    for number in range(others):
        shop.arrive(f"caller {number}")
    assert shop.next().done == ([] if waits else [first])


def test_under_steady_load_a_request_is_answered_while_there_is_time_for_candidates() -> None:
    """Five others always need 10.5 s, so from 9 s on no candidate of 5 s ends within 24 s."""
    shop = make_shop()
    arrived_at = shop.clock.now
    first = improvable(shop)
    queue = [shop.arrive(f"caller {number}") for number in range(5)]
    done = shop.next().done
    while not done:
        active = queue.pop(0)
        if active.engine is None:
            done = shop.next().done
        run(shop, active)
        shop.scheduler.leave(active)
        queue.append(shop.arrive(f"later {active.arrival}"))
        done += shop.next().done
    assert done == [first]
    assert shop.clock.now - arrived_at < 0.8 * BUDGET_S / 2


def test_a_request_whose_place_others_candidates_have_waits_only_if_it_still_fits() -> None:
    shop = make_shop()
    first = improvable(shop)
    second = shop.arrive("second", allowed_s=9.0)
    shop.only()
    run(shop, second)
    shop.scheduler.made(second, [0.5])
    due = shop.next()
    assert [dispatch.active.parent for dispatch in due.dispatches] == [first, first]
    assert due.done == [second]


def test_of_a_candidate_that_is_taken_back_only_the_step_that_runs_delays_the_others() -> None:
    """Its next step would be forecast on the GPU before the newcomer's, and make it 1.8 s late."""
    shop = make_shop(limits=CandidateLimits(max=2, spend=12.2 / BUDGET_S), route=PACK_FIRST)
    improvable(shop)
    extra = shop.only().active
    shop.start(extra)
    shop.clock.now += 0.2
    shop.arrive("newcomer")
    due = shop.next()
    assert due.taken_back == [extra]
    assert due.done == []


def test_with_no_time_for_a_further_picture_the_best_of_those_drawn_is_lifted() -> None:
    shop = make_shop(limits=CandidateLimits(max=9, pictures=4, spend=17.0 / BUDGET_S))
    arrived_at = shop.clock.now
    first = improvable(shop)
    extras = [dispatch.active for dispatch in shop.next().dispatches]
    for extra, rating in zip(extras, (0.2, 0.9), strict=True):
        run(shop, extra)
        shop.scheduler.made(extra, [rating])
    # 4.5 s are left: an object of a picture takes 2.5, a further picture as much again.
    shop.clock.now = arrived_at + 12.5
    due = shop.next()
    (lifted,) = due.dispatches
    assert lifted.active.group == extras[1].group
    assert due.done == []
    shop.scheduler.made(lifted.active, [0.7])
    assert shop.next().done == [first]
    assert first.candidates is not None
    assert [each.state for each in first.candidates.all] == ["made", "left_out", "made"]
