"""Which engines take a waiting request, and what is left of one that was removed."""

from miner.request import ActiveRequest
from miner.scheduling.pool import EnginePool
from tests.miner.scheduling.toys import LANES, SECONDS, Shop, learned, make_active
from tests.support.fakes import Clock


def pool_of(clock: Clock, *, far: bool) -> EnginePool:
    pool = EnginePool(learned(clock), clock)
    pool.add("one", LANES, far=far)
    return pool


def test_one_request_at_most_is_sent_ahead_to_a_lane_and_only_to_a_far_engine() -> None:
    clock = Clock()
    drawing = make_active(clock, engine="one", ran_s=1.0)
    ahead, waiting = make_active(clock), make_active(clock)
    admitted: list[ActiveRequest] = [drawing, ahead, waiting]
    assert pool_of(clock, far=False).engine_for(ahead, admitted) is None
    pool = pool_of(clock, far=True)
    assert pool.engine_for(ahead, admitted) == "one"
    ahead.engine = "one"
    assert pool.engine_for(waiting, admitted) is None


def test_an_engine_that_comes_back_is_neither_suspect_nor_held() -> None:
    pool = pool_of(Clock(), far=True)
    pool.suspect.add("one")
    pool.hold("one")
    assert not pool.usable
    pool.remove("one")
    pool.add("one", LANES, far=True)
    assert list(pool.usable) == ["one"]


def test_a_request_without_time_for_another_attempt_does_not_wait_for_it() -> None:
    shop = Shop("one", "two")
    active = shop.arrive()
    ((_, engine),) = shop.dispatched()
    shop.start(active)
    shop.clock.now = active.deadline - SECONDS["draw:lowest"]
    assert shop.scheduler.remove_engine(engine) == [active]
    assert not shop.scheduler.place_again(active)
    assert shop.scheduler.active == []
