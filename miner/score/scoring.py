"""What own scores were worth: candidates, the gate, and predicted scores against validators'."""

from collections import defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from miner.scheduling.gate import MOST_SCORERS, WINDOW, Calibration, GateLimits, Pair, calibrate
from miner.score.fields import Fields
from miner.score.tally import OTHERS

BINS = 20
"""Of predicted scores from 0 to 1."""

RECENT_PAIRS = 50
"""The last verdicts, by which it is told whether a scorer and the validators agree now."""


class Bin(NamedTuple):
    """The results of one scorer whose predicted score lies in a span.

    Attributes:
        low: Where it begins.
        high: Where it ends.
        judged: Results that a validator judged.
        accepted: Those that it accepted.
        given: The mean of their scores by validators; None without one.
    """

    low: float
    high: float
    judged: int
    accepted: int
    given: float | None


@dataclass
class Scoring:
    """The own scores of answers, and what validators made of these answers.

    Attributes:
        scored: Answers with an own score.
        candidates: Objects that were made and scored for them.
        spent_s: Seconds from the first object of each to its answer.
        first: Sum of the first objects' scores, of answers that tell it.
        best: Sum of the same answers' own scores.
        compared: These answers.
        gated: Answers that the gate was against.
        probes: Results below its limit that were submitted to learn from them.
        limits: The gate's last limit by scorer.
        pairs: The last results of each scorer that a validator judged, the newest last.
    """

    scored: int = 0
    candidates: int = 0
    spent_s: float = 0.0
    first: float = 0.0
    best: float = 0.0
    compared: int = 0
    gated: int = 0
    probes: int = 0
    limits: dict[str, float] = field(default_factory=dict)
    pairs: dict[str, deque[Pair]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=WINDOW))
    )

    def answered(self, fields: Fields) -> None:
        """Notes an `answered` event."""
        score = fields.number("score")
        if score is None:
            return
        first, count = fields.number("first_score"), fields.number("candidates")
        self.scored += 1
        self.candidates += 1 if count is None else int(count)
        self.spent_s += fields.number("candidates_s") or 0.0
        if first is not None:
            self.compared += 1
            self.first += first
            self.best += score
        self.gated += fields.flag("gated")
        self.probes += fields.flag("gate_probe")
        if (limit := fields.number("gate_limit")) is not None:
            self.limits[_scorer(self.limits, fields)] = limit

    def settled(self, fields: Fields, fate: str) -> None:
        """Notes a `feedback` event with this fate."""
        predicted, threshold = fields.number("predicted"), fields.number("threshold")
        if predicted is None or threshold is None or fate not in ("accepted", "refused"):
            return
        accepted = fate == "accepted"
        given = fields.number("task_fidelity_score") if accepted else None
        scorer = _scorer(self.pairs, fields)
        probe = fields.flag("gate_probe")
        self.pairs[scorer].append(Pair(predicted, accepted, given, threshold, scorer, probe))

    @property
    def gated_share(self) -> float | None:
        """Share of the scored answers that the gate was against; None without one."""
        return self.gated / self.scored if self.scored else None

    @property
    def per_answer(self) -> float | None:
        """Candidates of a scored answer, on average."""
        return self.candidates / self.scored if self.scored else None

    @property
    def seconds(self) -> float | None:
        """Seconds that an answer waited for further candidates, on average."""
        return self.spent_s / self.scored if self.scored else None

    @property
    def mean_first(self) -> float | None:
        """The mean score of the first objects."""
        return self.first / self.compared if self.compared else None

    @property
    def mean_best(self) -> float | None:
        """The mean score of what became of the same answers."""
        return self.best / self.compared if self.compared else None

    def calibration(self, scorer: str) -> Calibration:
        """Returns what a gate with the default settings learns from a scorer's pairs."""
        return calibrate(self.pairs[scorer], GateLimits())

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON-ready values."""
        return {
            "scored": self.scored,
            "candidates_per_answer": _rounded(self.per_answer),
            "candidates_s": _rounded(self.seconds),
            "first_score_mean": _rounded(self.mean_first),
            "score_mean": _rounded(self.mean_best),
            "gated": self.gated,
            "gated_share": _rounded(self.gated_share),
            "probes": self.probes,
            "scorers": {scorer: self._row(scorer) for scorer in self.pairs},
        }

    def _row(self, scorer: str) -> dict[str, Any]:
        pairs, learned = self.pairs[scorer], self.calibration(scorer)
        return {
            "judged": len(pairs),
            "accepted": sum(pair.accepted for pair in pairs),
            "margin": _rounded(learned.margin),
            "implied_threshold": _rounded(pairs[-1].threshold + learned.margin),
            "gate_limit": self.limits.get(scorer),
            "bins": [{**each._asdict(), "given": _rounded(each.given)} for each in bins_of(pairs)],
        }


def bins_of(pairs: Sequence[Pair]) -> list[Bin]:
    """Returns the bins with a pair in them, from the lowest predicted score on."""
    held: dict[int, list[Pair]] = defaultdict(list)
    for pair in pairs:
        held[min(BINS - 1, int(min(1.0, pair.predicted) * BINS + 1e-9))].append(pair)
    found = []
    for place, own in sorted(held.items()):
        given = [pair.given for pair in own if pair.given is not None]
        mean = sum(given) / len(given) if given else None
        accepted = sum(pair.accepted for pair in own)
        found.append(Bin(place / BINS, (place + 1) / BINS, len(own), accepted, mean))
    return found


def in_short(event: Mapping[str, Any]) -> str:
    """Returns the own score of an `answered` event, how it came about and what the gate said.

    Such as "0.51>0.66 of 9": the best of nine candidates, of which the first had 0.51. Empty
    where the event has no score.
    """
    fields = Fields(event)
    score, first = fields.number("score"), fields.number("first_score")
    if score is None:
        return ""
    words = f"{min(score, 9.99):.2f}"
    if (count := fields.number("candidates")) is not None and count > 1:
        words = f"{min(score if first is None else first, 9.99):.2f}>{words} of {count:.0f}"
    return f"gated {words}" if fields.flag("gated") else words


def expected_and_seen(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Returns the shares accepted: as the scorer alone makes expect, and by the validators.

    Args:
        pairs: At least one.
    """
    trusted = calibrate((), GateLimits())
    expected = sum(trusted.accepted(pair.predicted, pair.threshold) for pair in pairs)
    return expected / len(pairs), sum(pair.accepted for pair in pairs) / len(pairs)


def _scorer(known: Collection[str], fields: Fields) -> str:
    name = fields.name("scorer")
    return name if name in known or len(known) < MOST_SCORERS else OTHERS


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
