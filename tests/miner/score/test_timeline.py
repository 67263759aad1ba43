"""A course of any length fits a bounded number of spans, and adds up to the same numbers."""

import random
from collections import Counter

import pytest

from miner.score.tally import Answered, quantiles
from miner.score.timeline import EARLIEST, MOST_SPANS, SPANS_S, Timeline, Times

BEGIN = 1_800_000_000.0


def answer(outcome: str = "completed", code: str = "ok", total: float = 2.0) -> Answered:
    return Answered(outcome, code, "5V", "full", total, {}, outcome == "completed", False)


@pytest.mark.parametrize(
    ("period_s", "length"),
    [(3600, 60), (10 * 3600, 300), (86_400, 900), (7 * 86_400, 3600), (400 * 86_400, 7 * 86_400)],
)
def test_the_shortest_spans_that_fit_are_taken(period_s: int, length: int) -> None:
    timeline, chance = Timeline(), random.Random(1)
    moments = sorted(chance.uniform(0.0, period_s) for _ in range(5000))
    for moment in moments:
        timeline.answered(BEGIN + moment, answer())
    assert timeline.length == length
    counted = {begin: span.outcomes.total() for begin, span in timeline.spans()}
    assert len(counted) <= MOST_SPANS
    plain = Counter((BEGIN + moment) // length * length for moment in moments)
    assert counted == plain


def test_spans_that_become_longer_lose_nothing() -> None:
    timeline = Timeline()
    for hour in range(24 * 60):
        at = BEGIN + hour * 3600.0
        timeline.answered(at, answer())
        timeline.answered(at, answer("dropped", "predicted_late"))
        timeline.settled(at, "accepted", 0.5 + (hour % 2) * 0.2)
        timeline.settled(at, "refused", 0.0)
    spans = [span for _, span in timeline.spans()]
    assert sum(span.outcomes["completed", "ok"] for span in spans) == 1440
    assert sum(span.outcomes["dropped", "predicted_late"] for span in spans) == 1440
    assert sum(span.owed for span in spans) == 2880
    assert sum(span.on_time for span in spans) == 1440
    assert sum(span.seconds.steps.total() for span in spans) == 1440
    assert sum(span.fates["refused"] for span in spans) == 1440
    assert [span.fidelity for span in spans[1:-1]] == pytest.approx([0.6] * (len(spans) - 2))


def test_times_in_any_order_and_no_times_at_all_take_bounded_memory() -> None:
    timeline, chance = Timeline(), random.Random(2)
    for _ in range(20_000):
        timeline.answered(chance.uniform(0.0, 1e10), answer())
    spans = timeline.spans()
    assert len(spans) <= MOST_SPANS
    assert timeline.length == SPANS_S[-1]
    assert spans[0][0] >= EARLIEST - SPANS_S[-1]


def test_a_clock_that_was_not_set_does_not_stretch_the_course() -> None:
    timeline = Timeline()
    timeline.answered(5.0, answer())
    timeline.answered(BEGIN, answer())
    assert timeline.length == 60


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_a_quantile_of_times_is_known_to_one_percent(share: float) -> None:
    chance, times = random.Random(3), Times()
    values = [chance.lognormvariate(1.0, 0.8) for _ in range(2001)]
    for value in values:
        times.add(value)
    (exact,) = quantiles(values, (share,))
    assert times.quantile(share) == pytest.approx(exact, rel=0.0101)
    assert Times().quantile(share) is None
