"""Whether a result is worth submitting, from its own score. Pure: numbers in, a verdict out.

A validator lets the miner wait 300 s from one task to the next after an accepted or an empty
result, and 900 s after one under its threshold. With r accepted results per second of a validator's
turns, submitting pays where P(accepted | own score) > 600 r / (1 + 600 r): 2/3 at an accepted
result every 300 s, 1/2 at one every 600 s, 1/3 at one every 1200 s. The gate submits from 1/2 on,
which is exact at 24 accepted results in four hours. Around the best limit the earnings are flat, so
it costs little elsewhere (docs/candidates.md), and where P crosses 1/2 can be learned without
knowing how steep it is.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp, isfinite, log

WINDOW = 500
"""Pairs of a scorer that count: the last ones."""

PROBE_AFTER = 10
"""Gated results in a row after which the next one is submitted all the same."""

MOST_SCORERS = 8
"""Scorers whose pairs are kept."""

PRIOR_SD = 0.03
"""Standard deviation of the margin before anything was learned, in units of the score."""

LAPSE = 0.02
"""Share of verdicts that are taken to have nothing to do with the score, such as a signature that
was refused, so that one of them far from the limit teaches little."""

_SLOPES = (10.0, 15.0, 22.0, 33.0, 50.0, 75.0, 110.0)
"""Slopes of P(accepted) at the limit, times 4, per unit of the score: the error of a scorer has a
standard deviation of 0.17 at the first and of 0.015 at the last."""

_STEP = 0.01
"""Grid of scores and margins."""


@dataclass(frozen=True)
class GateLimits:
    """The settings of a gate.

    Attributes:
        threshold: Least score that a validator accepts, where it does not say.
        margin: Added to the threshold before anything was learned.
        most: Largest distance of the margin from 0.
        pairs: Verdicts of validators before the margin moves.
        learn: Whether it moves.
        enabled: Whether results are gated.

    Raises:
        ValueError: The margin is farther from 0 than `most`.
    """

    threshold: float = 0.6
    margin: float = 0.0
    most: float = 0.15
    pairs: int = 20
    learn: bool = True
    enabled: bool = True

    def __post_init__(self) -> None:
        if not abs(self.margin) <= self.most:
            raise ValueError(
                f"the margin {self.margin:g} is farther from 0 than {self.most:g}, the most allowed"
            )


@dataclass(frozen=True)
class Pair:
    """A result's own score and what its validator made of it.

    Attributes:
        predicted: The own score.
        accepted: Whether the validator accepted it.
        given: The validator's score; None for a refused result, of which it does not tell one.
        threshold: Least score that the validator accepts.
        scorer: Name of the scorer that predicted.
        probe: Whether it was submitted although it was below the limit.
    """

    predicted: float
    accepted: bool
    given: float | None
    threshold: float
    scorer: str
    probe: bool = False


@dataclass(frozen=True)
class GateVerdict:
    """Whether a result is submitted.

    Attributes:
        passed: Whether it is; true for a probe.
        limit: Least own score that passes: threshold + margin.
        margin: As learned for this scorer.
        probe: Whether it is below the limit and submitted to learn what the validator says.
        reason: One phrase with the numbers.
    """

    passed: bool
    limit: float
    margin: float
    probe: bool
    reason: str


@dataclass(frozen=True)
class Calibration:
    """P(accepted | own score) of one scorer.

    Attributes:
        margin: Own score less the validator's threshold at which P is 1/2.
        slope: Four times the slope of P there.
        pairs: Verdicts that it rests on.
    """

    margin: float
    slope: float
    pairs: int

    def accepted(self, predicted: float, threshold: float) -> float:
        """Returns the probability that a validator with this threshold accepts the result."""
        return _accepted(self.slope * (predicted - threshold - self.margin))


def calibrate(pairs: Sequence[Pair], limits: GateLimits) -> Calibration:
    """Returns what the pairs of one scorer say; their order does not matter.

    It is the mean of the posterior over a grid of margins and slopes: the margin normal around
    `limits.margin`, every slope of the grid alike.

    Args:
        pairs: Of one scorer.
        limits: Bounds the margin; with fewer pairs than `limits.pairs` it is `limits.margin`.
    """
    if len(pairs) < limits.pairs:
        return Calibration(limits.margin, _SLOPES[len(_SLOPES) // 2], len(pairs))
    counts = Counter((_place(pair.predicted - pair.threshold), pair.accepted) for pair in pairs)
    rows = sorted((place, accepted, count) for (place, accepted), count in counts.items())
    reach = int(limits.most / _STEP + 1e-9)
    cells = [
        (margin * _STEP, slope, _log_likelihood(rows, margin, slope) + _log_prior(margin, limits))
        for margin in range(-reach, reach + 1)
        for slope in _SLOPES
    ]
    highest = max(weight for _, _, weight in cells)
    weights = [exp(weight - highest) for _, _, weight in cells]
    total = sum(weights)
    margin = sum(w * margin for w, (margin, _, _) in zip(weights, cells, strict=True)) / total
    steep = sum(w * log(slope) for w, (_, slope, _) in zip(weights, cells, strict=True)) / total
    return Calibration(min(limits.most, max(-limits.most, margin)), exp(steep), len(pairs))


@dataclass
class _Record:
    """What is remembered of one scorer.

    Attributes:
        pairs: The last ones.
        gated: Results in a row that were gated.
        probes: Probes in a row that were accepted.
        calibration: Of the pairs; None until it is needed again.
    """

    pairs: deque[Pair] = field(default_factory=lambda: deque(maxlen=WINDOW))
    gated: int = 0
    probes: int = 0
    calibration: Calibration | None = None


class Gate:
    """Decides whether results are submitted, and learns from what validators say of them.

    The scorers are learned apart. After `PROBE_AFTER` gated results in a row one is submitted as a
    probe, because a gate that submits nothing cannot learn that its scorer is wrong. Each accepted
    probe in a row halves that number, so a scorer that is off by more than the margin may move
    costs a few turns: in the end every result is submitted. A refused probe restores it.

    Args:
        limits: The settings.
        pairs: Of an earlier run, the oldest first.
    """

    def __init__(self, limits: GateLimits | None = None, pairs: Iterable[Pair] = ()) -> None:
        self.limits = limits or GateLimits()
        self._records: dict[str, _Record] = {}
        for pair in pairs:
            self.observe(pair)

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """What was learned, by scorer, the oldest first."""
        return tuple(pair for record in self._records.values() for pair in record.pairs)

    def calibration(self, scorer: str) -> Calibration:
        """Returns what was learned of a scorer."""
        record = self._records.get(scorer)
        if record is None:
            return calibrate((), self.limits)
        if record.calibration is None:
            record.calibration = calibrate(record.pairs, self.limits)
        return record.calibration

    def judge(
        self, score: float, scorer: str, threshold: float | None = None, *, feedback: bool = True
    ) -> GateVerdict:
        """Decides on a result.

        Args:
            score: Its own score.
            scorer: Name of the scorer that gave it.
            threshold: Least score that the validator accepts; None if it does not say.
            feedback: Whether the caller will say what became of the result; without, it is no
                probe.
        """
        limits = self.limits
        threshold = limits.threshold if threshold is None else threshold
        margin = self.calibration(scorer).margin if limits.learn else limits.margin
        limit = round(threshold + margin, 6)
        numbers = f"{limit:.3f}: threshold {threshold:g}, margin {margin:+.3f}"
        if not limits.enabled:
            return GateVerdict(True, limit, margin, False, "the gate is off")
        record = self._records.get(scorer) or _Record()
        if score >= limit:
            record.gated = 0
            words = f"its score {score:.3f} is at least {numbers}"
            return GateVerdict(True, limit, margin, False, words)
        words = f"its score {score:.3f} is below {numbers}"
        if feedback:
            self._keep(scorer, record)
            record.gated += 1
            if record.gated > PROBE_AFTER >> record.probes:
                gated, record.gated = record.gated - 1, 0
                words = f"{words}; a probe after {gated} gated results in a row"
                return GateVerdict(True, limit, margin, True, words)
        return GateVerdict(False, limit, margin, False, words)

    def observe(self, pair: Pair) -> None:
        """Learns what a validator made of a result that was submitted."""
        if not (isfinite(pair.predicted) and isfinite(pair.threshold)):
            return
        record = self._records.pop(pair.scorer, None) or _Record()
        self._keep(pair.scorer, record)
        record.pairs.append(pair)
        record.calibration = None
        if pair.probe:
            record.probes = record.probes + 1 if pair.accepted else 0

    def _keep(self, scorer: str, record: _Record) -> None:
        self._records[scorer] = record
        if len(self._records) > MOST_SCORERS:
            del self._records[next(iter(self._records))]


def _place(distance: float) -> int:
    """Returns the point of the grid that is next to a score less its threshold."""
    return round(min(1.0, max(-1.0, distance)) / _STEP)


def _log_prior(margin: int, limits: GateLimits) -> float:
    return -0.5 * ((margin * _STEP - limits.margin) / PRIOR_SD) ** 2


def _log_likelihood(rows: Iterable[tuple[int, bool, int]], margin: int, slope: float) -> float:
    return sum(
        count * _log_chance(slope, place - margin, accepted) for place, accepted, count in rows
    )


@cache
def _log_chance(slope: float, places: int, accepted: bool) -> float:
    chance = _accepted(slope * places * _STEP)
    return log(chance if accepted else 1.0 - chance)


def _accepted(steps: float) -> float:
    """Returns a logistic curve that ends at `LAPSE` / 2 and 1 - `LAPSE` / 2."""
    return LAPSE / 2 + (1.0 - LAPSE) / (1.0 + exp(-min(50.0, max(-50.0, steps))))
