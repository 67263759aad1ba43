"""A validator's clock is learned from the dates of its answers, and from pulls that it refused."""

import math
import time
from collections.abc import Callable
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.transports.clocks import DATE_STEP_S, MAX_OFFSET_S, SteadyClock, parse_date
from miner.transports.pull.clocks import ValidatorClock
from tests.miner.transports.pull.test_validators import START
from tests.support.fakes import Clock


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (formatdate(START, usegmt=True), START),
        (formatdate(START + 3600.0, usegmt=True), START + 3600.0),
        (formatdate(START + MAX_OFFSET_S + 1.0, usegmt=True), None),
        (formatdate(0, usegmt=True), None),
        (None, None),
        ("", None),
        ("soon", None),
        ("Thu, 99 Nov 2026 17:30:39 GMT", None),
        ("Thu, 26 Nov 9999999 17:30:39 GMT", None),
        ("Thu, 26 Nov 2026 17:30:39 +99999999999999", None),
        ("\x00" * 1000, None),
    ],
)
def test_an_absurd_date_is_ignored(header: str | None, expected: float | None) -> None:
    assert parse_date(header, START) == expected


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize(
    "format",
    [
        "%a, %d %b %Y %H:%M:%S GMT",
        "%a, %d %b %Y %H:%M:%S -0000",
        "%a, %d %b %Y %H:%M:%S",
        "%A, %d-%b-%y %H:%M:%S GMT",
        "%a %b %d %H:%M:%S %Y",
    ],
)
def test_a_date_of_any_form_is_utc_wherever_this_machine_stands(
    monkeypatch: pytest.MonkeyPatch, zone: str, format: str
) -> None:
    header = time.strftime(format, time.gmtime(START))
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert parse_date(header, START) == START
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.text(max_size=80))
def test_no_date_header_raises(header: str) -> None:
    parse_date(header, START)


@pytest.mark.parametrize(
    ("until", "date", "expected"),
    [
        (2000.0, 1000.0, 2000.0),
        (2000.0, 1060.0, 1940.0),
        (2000.0, 940.0, 2060.0),
        (2000.0, None, 2000.0),
        (0.0, 1060.0, 0.0),
        (-5.0, 1000.0, 0.0),
    ],
)
def test_a_cooldown_is_brought_onto_our_clock(
    until: float, date: float | None, expected: float
) -> None:
    clock = ValidatorClock()
    clock.dated(date, sent_at=1000.0, answered_at=1000.0)
    assert clock.on_ours(until, 1000.0) == expected


@pytest.mark.parametrize(
    ("date", "until", "left"),
    [
        (-36_000.0, 300.0, 300.0),  # Dates of another clock: the cooldown is by ours.
        (-36_000.0, -35_700.0, 300.0),  # The validator's clock is ten hours behind.
        (36_000.0, 36_300.0, 300.0),
        (0.0, 20_000.0, 20_000.0),  # Hours for many violations.
        (-5.0, 3595.0, 3600.0),
    ],
)
def test_dates_of_another_clock_exclude_no_validator_for_hours(
    date: float, until: float, left: float
) -> None:
    clock = ValidatorClock()
    clock.dated(START + date, sent_at=START, answered_at=START)
    assert clock.on_ours(START + until, START) == START + left


@given(
    st.floats(-4000.0, 4000.0),
    st.lists(
        st.tuples(st.floats(0.0, 600.0), st.floats(0.0, 300.0), st.floats(0.0, 1.0)),
        min_size=1,
        max_size=30,
    ),
)
def test_the_offset_is_never_over_the_true_one_and_at_most_one_step_under_it(
    offset: float, answers: list[tuple[float, float, float]]
) -> None:
    clock, now = ValidatorClock(), START
    under = []
    for pause, took, when in answers:
        now += pause
        sent, answered = now, now + took
        # Taken at any moment of the exchange, of a header that is renewed every 1.2 s.
        theirs = sent + when * took + offset
        clock.dated(math.floor(theirs - theirs % 1.2), sent_at=sent, answered_at=answered)
        now = answered
        under.append((1.0 - when) * took + DATE_STEP_S)
        assert offset - min(under[-1], 1e9) - 1e-3 <= clock.offset(now) <= offset + 1e-3


def test_a_clock_that_is_set_back_is_believed_at_once() -> None:
    clock = ValidatorClock()
    clock.dated(1100.0, sent_at=1000.0, answered_at=1000.1)
    clock.dated(1160.0, sent_at=1100.0, answered_at=1100.1)
    assert clock.offset(1100.1) == pytest.approx(60.0, abs=0.2)


def test_the_tightest_bound_is_kept_but_loosens_as_clocks_drift() -> None:
    clock = ValidatorClock()
    clock.dated(1000.0, sent_at=1000.0, answered_at=1000.0)
    clock.dated(1000.0, sent_at=1001.9, answered_at=1001.9)
    assert clock.offset(1001.9) == pytest.approx(0.0, abs=1e-3)
    assert -0.5 < clock.offset(1000.0 + 3600.0) < -0.1


def refusals(clock: ValidatorClock, *, behind: float, date: Callable[[float], float | None]) -> int:
    """Pulls refused until one is granted, after a cooldown that ends at 300 by their clock."""
    now, count = 200.0, 0
    clock.granted(0)
    clock.submitted(300.0)
    while count < 50:
        now = max(now, clock.on_ours(300.0, now)) + 1.0
        if now - behind >= 300.0:
            return count
        count += 1
        clock.refused(300.0, count, date(now - behind), sent_at=now, answered_at=now + 0.1)
    raise AssertionError("never granted")


@pytest.mark.parametrize(("behind", "most"), [(0.0, 0), (5.0, 3), (60.0, 6), (200.0, 8)])
def test_refused_pulls_teach_how_far_a_clock_without_dates_is_behind(
    behind: float, most: int
) -> None:
    clock = ValidatorClock()
    assert refusals(clock, behind=behind, date=lambda now: None) <= most
    assert refusals(clock, behind=behind, date=lambda now: None) == 0


def test_refused_pulls_count_more_than_the_dates_of_another_clock() -> None:
    """A proxy in front of the validator dates the answers by its own clock."""
    clock = ValidatorClock()
    clock.dated(200.0, sent_at=200.0, answered_at=200.0)
    assert refusals(clock, behind=5.0, date=lambda theirs: math.floor(theirs + 5.0)) <= 3
    assert refusals(clock, behind=5.0, date=lambda theirs: math.floor(theirs + 5.0)) == 0


def test_a_small_step_back_is_learned_from_one_refusal_and_costs_nothing_later() -> None:
    clock = ValidatorClock()
    clock.dated(200.0, sent_at=200.0, answered_at=200.0)
    assert refusals(clock, behind=2.2, date=math.floor) == 1
    assert clock.offset(400.0) >= -2.2 - 1.1


def test_an_answer_without_a_task_is_no_refusal() -> None:
    """Neither one that repeats an old cooldown, nor one that counts what was counted before."""
    clock = ValidatorClock()
    clock.granted(3)
    clock.submitted(300.0)
    for now in (400.0, 460.0, 520.0):
        clock.refused(300.0, 2, None, sent_at=now, answered_at=now)
        assert clock.offset(now) == 0.0
    clock.refused(0.0, 9, None, sent_at=600.0, answered_at=600.0)
    clock.refused(9000.0, 10, None, sent_at=700.0, answered_at=700.0)
    assert clock.offset(700.0) == 0.0


def test_a_validator_that_refuses_for_ever_costs_minutes_not_hours() -> None:
    clock = ValidatorClock()
    clock.granted(0)
    clock.submitted(300.0)
    for count in range(1, 60):
        now = 400.0 + 60.0 * count
        clock.refused(300.0, count, None, sent_at=now, answered_at=now)
    assert clock.offset(5000.0) == -300.0


@given(st.lists(st.tuples(st.floats(0.1, 900.0), st.floats(-7200.0, 7200.0)), max_size=20))
def test_our_own_clock_goes_on_steadily_whatever_becomes_of_the_wall_clock(
    steps: list[tuple[float, float]],
) -> None:
    wall, monotonic = Clock(START), Clock(5.0)
    clock, expected = SteadyClock(wall, monotonic), START
    for passed, step in steps:
        wall.now += passed + step
        monotonic.now += passed
        expected += passed
        assert clock() == pytest.approx(expected)
        assert clock() + clock.behind_wall() == pytest.approx(wall.now)


def test_a_validator_without_dates_is_taken_to_follow_the_corrected_wall_clock() -> None:
    wall, monotonic = Clock(START - 90_000.0), Clock(0.0)
    ours = SteadyClock(wall, monotonic)
    clock = ValidatorClock(ours.behind_wall)
    wall.now = START
    assert clock.on_ours(START + 300.0, ours()) == ours() + 300.0
