"""What happened when: answers, their times and scores, in spans of equal length.

Bounded however long a log is: with too many spans, all of them become longer.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from miner.score.tally import OTHERS, Answered, bounded

SPANS_S = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
"""Lengths of a span; the shortest that fits is taken."""

MOST_SPANS = 180
"""A day is shown by quarters of an hour, a week by hours."""

EARLIEST = 1_577_836_800.0
"""2020-01-01. A line with an earlier time was written before its machine knew the time."""

_STEP = math.log(1.02)
_LEAST_S = 0.001


class Times:
    """Seconds in steps of 2 %, of which a quantile is known to 1 %; they can be added up."""

    __slots__ = ("steps",)

    def __init__(self) -> None:
        self.steps: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Counts one value."""
        self.steps[round(math.log(seconds if seconds > _LEAST_S else _LEAST_S) / _STEP)] += 1

    def quantile(self, share: float) -> float | None:
        """Returns a quantile in seconds; None without a value."""
        place = share * (self.steps.total() - 1)
        for step, count in sorted(self.steps.items()):
            place -= count
            if place < 0.0:
                return math.exp(step * _STEP)
        return None


@dataclass
class Span:
    """What happened in one span.

    Attributes:
        outcomes: Answers by (outcome, reason code).
        owed: Answers that were owed.
        on_time: Those of them that were completed within their budget.
        seconds: Of completed answers, from receipt to answer.
        fates: Settled tasks of validators by fate.
        scored: Accepted results.
        score: The sum of their scores.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    owed: int = 0
    on_time: int = 0
    seconds: Times = field(default_factory=Times)
    fates: Counter[str] = field(default_factory=Counter)
    scored: int = 0
    score: float = 0.0

    def merge(self, other: "Span") -> None:
        """Adds another span's numbers to this one's."""
        for both, count in other.outcomes.items():
            self.outcomes[bounded(self.outcomes, both, (OTHERS, OTHERS))] += count
        self.owed += other.owed
        self.on_time += other.on_time
        self.seconds.steps.update(other.seconds.steps)
        self.fates.update(other.fates)
        self.scored += other.scored
        self.score += other.score

    @property
    def fidelity(self) -> float | None:
        """Mean score of the accepted results."""
        return self.score / self.scored if self.scored else None


class Timeline:
    """Spans by their beginning, which is a multiple of their length since the epoch.

    Attributes:
        length: Of a span, in seconds.
    """

    def __init__(self) -> None:
        self.length = SPANS_S[0]
        self._spans: dict[int, Span] = {}
        self._last: tuple[int, Span] = (-1, Span())

    def answered(self, at: float, answer: Answered) -> None:
        """Counts an answer, given at this time (seconds since the epoch)."""
        span = self._span(at)
        both = (answer.outcome, answer.code)
        span.outcomes[bounded(span.outcomes, both, (OTHERS, OTHERS))] += 1
        if answer.owed:
            span.owed += 1
            span.on_time += answer.on_time
        if answer.outcome == "completed" and answer.total is not None:
            span.seconds.add(answer.total)

    def settled(self, at: float, fate: str, score: float | None) -> None:
        """Counts a settled task of a validator."""
        span = self._span(at)
        span.fates[fate] += 1
        if fate == "accepted" and score is not None:
            span.scored += 1
            span.score += score

    def spans(self) -> list[tuple[float, Span]]:
        """Returns the beginnings of the spans in which something happened, with them, in order."""
        return [(float(index * self.length), self._spans[index]) for index in sorted(self._spans)]

    def as_dict(self) -> dict[str, Any]:
        """The course as JSON-ready values; spans in which nothing happened are left out."""
        return {
            "span_s": self.length,
            "spans": [
                {
                    "unix": begin,
                    "outcomes": {f"{o}/{code}": n for (o, code), n in span.outcomes.items()},
                    "owed": span.owed,
                    "on_time": span.on_time,
                    "p50_s": _rounded(span.seconds.quantile(0.5)),
                    "p95_s": _rounded(span.seconds.quantile(0.95)),
                    "fates": dict(span.fates),
                    "fidelity": _rounded(span.fidelity),
                }
                for begin, span in self.spans()
            ],
        }

    def _span(self, at: float) -> Span:
        index = int(max(at, EARLIEST) // self.length)
        if index == self._last[0]:
            return self._last[1]
        span = self._spans.get(index)
        if span is None:
            span = self._spans[index] = Span()
            if len(self._spans) > MOST_SPANS:
                if self._lengthen():
                    return self._span(at)
                del self._spans[min(self._spans)]
        self._last = (index, span)
        return span

    def _lengthen(self) -> bool:
        """Makes the spans longer; returns whether there is a longer one."""
        longer = [length for length in SPANS_S if length > self.length]
        if longer:
            old, length = self._spans, self.length
            self.length, self._spans, self._last = longer[0], {}, (-1, Span())
            for index, span in sorted(old.items()):
                self._spans.setdefault(index * length // self.length, Span()).merge(span)
        return bool(longer)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
