"""When a lost engine is started again."""

from miner.scheduling.restarts import HOPELESS, MOST_PAUSE_S, STABLE_S, Restarts
from tests.support.fakes import Clock


def test_pauses_double_up_to_a_minute() -> None:
    restarts = Restarts(Clock())
    restarts.lost()
    pauses = []
    for _ in range(9):
        pauses.append(restarts.pause_s)
        restarts.failed()
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == MOST_PAUSE_S


def test_an_engine_that_dies_again_and_again_waits_longer_although_it_starts() -> None:
    clock = Clock()
    restarts = Restarts(clock)
    for expected in (1.0, 2.0, 4.0):
        restarts.lost()
        assert restarts.pause_s == expected
        restarts.served()
        clock.now += STABLE_S - 1.0
    restarts.served()
    clock.now += STABLE_S
    restarts.lost()
    assert restarts.pause_s == 1.0


def test_it_is_hopeless_after_some_attempts_in_a_row_and_not_before() -> None:
    restarts = Restarts(Clock())
    restarts.lost()
    for _ in range(HOPELESS):
        assert not restarts.hopeless
        restarts.failed()
    assert restarts.hopeless
