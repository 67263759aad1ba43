"""What one caller may book, and what it leaves to others."""

from collections.abc import Hashable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.queueing import ACTIVE_S, FairShares, total_by
from tests.support.fakes import Clock

HORIZON = 30.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shares(clock: Clock) -> FairShares:
    return FairShares(clock)


def fill(shares: FairShares, booked: dict[Hashable, float], caller: str, seconds: float) -> float:
    """Books requests of one length until the rule refuses one; returns what the caller has then."""
    shares.note(caller)
    while shares.excess(caller, seconds, booked, HORIZON) <= 0.0:
        booked[caller] = booked.get(caller, 0.0) + seconds
        shares.book(caller, seconds)
    return booked[caller]


def test_a_lone_caller_leaves_a_share_free(shares: FairShares) -> None:
    booked: dict[Hashable, float] = {}
    used = fill(shares, booked, "a", 1.0)
    assert used == HORIZON - shares.share(HORIZON)
    assert shares.share(HORIZON) == HORIZON / 2


def test_where_there_can_be_only_one_caller_it_may_book_everything_at_every_rung(
    clock: Clock,
) -> None:
    shares = FairShares(clock, sole=True)
    booked: dict[Hashable, float] = {}
    assert fill(shares, booked, "a", 1.0) == HORIZON
    assert not shares.floods("a")


def test_two_callers_leave_a_share_free(shares: FairShares) -> None:
    booked: dict[Hashable, float] = {}
    shares.note("a")
    shares.note("b")
    first = fill(shares, booked, "a", 1.0)
    assert first == HORIZON - shares.share(HORIZON) == 20.0
    booked.clear()
    for _ in range(30):
        for caller in ("a", "b"):
            if shares.excess(caller, 1.0, booked, HORIZON) <= 0.0:
                booked[caller] = booked.get(caller, 0.0) + 1.0
    assert booked == {"a": 10.0, "b": 10.0}


def test_a_second_caller_gets_its_share_after_the_first_has_booked_all_that_it_may(
    shares: FairShares,
) -> None:
    booked: dict[Hashable, float] = {}
    fill(shares, booked, "flood", 1.0)
    modest = fill(shares, booked, "modest", 1.0)
    assert modest >= shares.share(HORIZON)
    assert sum(booked.values()) <= HORIZON


def test_a_caller_without_bookings_may_book_a_request_of_any_length(shares: FairShares) -> None:
    booked: dict[Hashable, float] = {}
    fill(shares, booked, "flood", 1.0)
    shares.note("modest")
    assert shares.excess("modest", 2 * HORIZON, booked, HORIZON) <= 0.0


def test_what_is_too_much_is_returned_in_seconds(shares: FairShares) -> None:
    booked: dict[Hashable, float] = {}
    shares.note("a")
    used = HORIZON - shares.share(HORIZON)
    booked["a"] = used
    assert shares.excess("a", 2.5, booked, HORIZON) == pytest.approx(2.5)


def test_a_caller_counts_for_a_while_after_its_last_request(
    shares: FairShares, clock: Clock
) -> None:
    shares.note("a")
    shares.note("b")
    assert shares.share(HORIZON) == 10.0
    clock.now += 0.9 * ACTIVE_S
    shares.note("a")
    assert shares.share(HORIZON) == 10.0
    clock.now += 0.2 * ACTIVE_S
    shares.note("a")
    assert shares.share(HORIZON) == 15.0


def test_who_books_most_of_a_minute_floods_and_crowds_the_others_out(
    shares: FairShares, clock: Clock
) -> None:
    for _ in range(60):
        clock.now += 1.0
        shares.note("flood")
        shares.book("flood", 0.8)
    for caller in ("modest", "other"):
        shares.note(caller)
        shares.book(caller, 3.0)
    assert [caller for caller in ("flood", "modest", "other") if shares.floods(caller)] == ["flood"]
    assert shares.is_crowded_out("modest")
    assert shares.is_crowded_out("other")
    assert not shares.is_crowded_out("flood")


def test_nobody_floods_who_books_as_much_as_the_others(shares: FairShares, clock: Clock) -> None:
    callers = ("a", "b", "c")
    for _ in range(60):
        clock.now += 1.0
        for caller in callers:
            shares.note(caller)
            shares.book(caller, 1.0)
    assert not any(shares.floods(caller) or shares.is_crowded_out(caller) for caller in callers)


def test_nobody_floods_with_little(shares: FairShares) -> None:
    shares.note("a")
    shares.note("b")
    shares.book("a", 2.0)
    assert not shares.floods("a")
    assert not shares.is_crowded_out("b")


def test_a_flood_is_forgotten(shares: FairShares, clock: Clock) -> None:
    shares.note("flood")
    shares.note("modest")
    shares.book("flood", ACTIVE_S)
    assert shares.floods("flood")
    clock.now += 2 * ACTIVE_S
    assert not shares.floods("flood")


def test_who_is_crowded_out_may_use_what_is_kept_free_of_the_flood(shares: FairShares) -> None:
    booked: dict[Hashable, float] = {"flood": 15.0}
    for caller in ("flood", "modest"):
        shares.note(caller)
    assert fill(shares, dict(booked), "modest", 1.0) == shares.share(HORIZON) == 10.0
    shares.book("flood", 60.0)  # Most of it is done already.
    assert fill(shares, booked, "modest", 1.0) == 15.0
    assert sum(booked.values()) == HORIZON


requests = st.tuples(st.sampled_from("abcdef"), st.floats(0.01, 40.0), st.floats(0.0, 20.0))


@given(asked=st.lists(requests, max_size=80), done=st.randoms(use_true_random=False))
def test_a_caller_with_nothing_booked_is_let_in_whatever_the_others_have_booked(
    asked: list[tuple[str, float, float]], done: Random
) -> None:
    clock = Clock()
    shares = FairShares(clock)
    booked: dict[Hashable, float] = {}
    for caller, seconds, gap in asked:
        clock.now += gap
        shares.note(caller)
        if booked and done.random() < 0.3:
            booked.pop(done.choice(sorted(booked, key=str)))
        if shares.excess(caller, seconds, booked, HORIZON) <= 0.0:
            booked[caller] = booked.get(caller, 0.0) + seconds
            shares.book(caller, seconds)
        shares.note("newcomer")
        assert shares.excess("newcomer", seconds, booked, HORIZON) <= 0.0


@given(asked=st.lists(st.floats(0.01, 40.0), min_size=1, max_size=80), others=st.integers(0, 5))
def test_no_caller_books_the_last_share_beyond_its_first_request(
    asked: list[float], others: int
) -> None:
    shares = FairShares(Clock())
    booked: dict[Hashable, float] = {}
    for caller in ("a", *range(others)):
        shares.note(caller)
    for seconds in asked:
        if shares.excess("a", seconds, booked, HORIZON) <= 0.0:
            booked["a"] = booked.get("a", 0.0) + seconds
            shares.book("a", seconds)
    assert booked["a"] <= max(asked[0], HORIZON - shares.share(HORIZON)) + 1e-9


def test_seconds_are_added_up_by_caller() -> None:
    assert total_by([("a", 1.0), ("b", 2.0), ("a", 3.0)]) == {"a": 4.0, "b": 2.0}
    assert total_by([]) == {}
