"""News of a step that arrives after its request has left: an engine in another process sends it."""

from tests.miner.scheduling.toys import SECONDS, Shop


def test_a_step_that_starts_as_its_request_leaves_keeps_its_lane_until_it_ends() -> None:
    shop = Shop()
    active = shop.arrive()
    shop.dispatched()
    shop.scheduler.leave(active)
    assert not shop.scheduler.is_busy("one")
    shop.start(active)
    assert shop.scheduler.is_busy("one")
    assert shop.scheduler.active == []
    waiting = shop.arrive()
    assert shop.dispatched() == []
    shop.end(active, after=SECONDS["draw:best"])
    assert not shop.scheduler.is_busy("one")
    assert shop.dispatched() == [(waiting, "one")]


def test_news_of_an_engine_that_is_gone_keeps_nothing() -> None:
    shop = Shop("one", "two")
    active = shop.arrive()
    ((_, engine),) = shop.dispatched()
    shop.scheduler.leave(active)
    shop.scheduler.remove_engine(engine)
    shop.start(active)
    assert not shop.scheduler.is_busy(engine)
