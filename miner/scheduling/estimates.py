"""How long each kind of step takes on each engine: learned from events, kept over restarts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import exp2, inf, sqrt

MIN_WEIGHT = 0.1
"""Least weight of a new observation; about the last 20 count."""

PRIOR_COUNT = 1.0
"""Observations that a warm-up or a file is worth: the first real one counts as much."""

PRIOR_CV = 0.15
"""Standard deviation assumed before anything has been observed, as a share of the mean."""

COUNT_HALF_LIFE_S = 300.0
"""What was observed counts half after so long without an observation: a prior or a bad spell gives
way to the next observations the faster, the older it is."""

EXCESS_HALF_LIFE_S = 60.0
"""The part of a prediction above its long-term level fades with this half-life while nothing is
observed. Otherwise one bad minute could make the guard refuse everything, and what is refused is
never observed."""

LEVEL_WEIGHT = 0.02
"""Least weight of an observation in the long-term level; about the last 100 count."""

CLIP_FACTOR, CLIP_DEVIATIONS, CLIP_FLOOR_S = 2.0, 4.0, 0.01
"""Clip each observation to this many predictions, to this many standard deviations above the mean,
to the long-term level, or to this many seconds, whichever is more: one outlier then teaches little,
a changed speed still much, and an estimate far too low is corrected as well."""

ODD_FACTOR = 2.0
"""A warm-up that takes more than this many times what an earlier run learned is repeated."""


@dataclass(frozen=True)
class Cost:
    """Predicted seconds of one step: mean and variance."""

    mean: float
    variance: float

    def quantile(self, z: float) -> float:
        """Returns the mean plus `z` standard deviations."""
        return self.mean + z * sqrt(self.variance)


@dataclass(frozen=True)
class Learned:
    """What is known of one cost key on one engine.

    Attributes:
        mean: Seconds, over the last observations.
        variance: Square seconds, of single observations.
        level: Seconds, over many observations.
        count: Observations that the mean is worth.
        at: When it was observed last, on the clock of `Estimates`.
        observed: Requests' steps that it was learned from; a file counts as one, a warm-up as none.
    """

    mean: float
    variance: float
    level: float
    count: float
    at: float
    observed: int = 0


class Estimates:
    """Predicts the seconds of a step from those that ran before it.

    Mean and variance are exponential averages whose weight starts at that of an arithmetic mean
    (1 / count) and never falls below `MIN_WEIGHT`.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._learned: dict[tuple[str, str], Learned] = {}

    def cost(self, engine: str, key: str) -> Cost:
        """Predicts one step.

        A key that was never seen is predicted as the dearest known one of the same stage, on this
        engine or else on any.

        Raises:
            KeyError: Nothing is known of its stage.
        """
        learned = self._learned.get((engine, key)) or self._relative(engine, key)
        mean = learned.mean
        if mean > learned.level:
            age = max(0.0, self._clock() - learned.at)
            mean = learned.level + (mean - learned.level) * exp2(-age / EXCESS_HALF_LIFE_S)
        shrunk = mean / learned.mean if learned.mean > 0 else 1.0
        return Cost(mean, learned.variance * shrunk * shrunk)

    def observe(self, engine: str, key: str, seconds: float, *, failed: bool = False) -> None:
        """Learns from a step.

        Nothing makes a step run much faster than it can. One that takes less than half of what a
        prior or a forgotten spell predicts therefore replaces it instead of being averaged; the
        difference only widens the spread.

        Args:
            engine: Where it ran.
            key: Its cost key.
            seconds: How long it occupied its lane.
            failed: It ended with an error: then `seconds` is only a lower bound, and counts only
                if it exceeds the prediction.
        """
        old = self._learned.get((engine, key))
        now = self._clock()
        if old is None:
            if not failed:
                self._learned[engine, key] = replace(_prior(seconds, now), observed=1)
            return
        if failed and seconds <= old.mean:
            return
        count = old.count * exp2(-max(0.0, now - old.at) / COUNT_HALF_LIFE_S)
        if count <= PRIOR_COUNT and ODD_FACTOR * seconds < old.mean:
            self._learned[engine, key] = replace(
                _prior(seconds, now), level=old.level, observed=old.observed + 1
            )
            return
        deviations = old.mean + CLIP_DEVIATIONS * sqrt(old.variance)
        limit = max(CLIP_FACTOR * old.mean, deviations, old.level, CLIP_FLOOR_S)
        step = min(seconds, limit) - old.mean
        weight = max(MIN_WEIGHT, 1.0 / (count + 1.0))
        counted = old.mean + step
        level_weight = weight
        if old.observed:
            level_weight = max(LEVEL_WEIGHT, 1.0 / (old.observed + PRIOR_COUNT + 1.0))
        self._learned[engine, key] = Learned(
            mean=old.mean + weight * step,
            variance=(1.0 - weight) * (old.variance + weight * step * step),
            level=old.level + level_weight * (counted - old.level),
            count=min(count + 1.0, 1.0 / MIN_WEIGHT),
            at=now,
            observed=old.observed + 1,
        )

    def set_prior(self, engine: str, seconds: Mapping[str, float]) -> None:
        """Takes a warm-up's seconds by cost key; what an earlier run observed is kept beside it.

        Where a file already knows a key, the two are averaged.
        """
        now = self._clock()
        for key, value in seconds.items():
            if (engine, key) in self._learned:
                self.observe(engine, key, value)
            else:
                self._learned[engine, key] = _prior(value, now)

    def oddity(self, engine: str, seconds: Mapping[str, float]) -> str | None:
        """Says what is odd about a warm-up, or returns None.

        It is odd if a key takes more than `ODD_FACTOR` times what an earlier run learned.
        """
        for key, value in seconds.items():
            learned = self._learned.get((engine, key))
            if learned is None or value <= 0.0 or learned.level <= 0.0:
                continue
            ratio = value / learned.level
            # A few milliseconds more or less say nothing.
            if ratio > ODD_FACTOR and value - learned.level > 0.05:
                return f"{key} took {value:.2f} s, {ratio:.1f} x what it took before"
        return None

    def seconds_since_observed(self, engine: str, stages: Iterable[str]) -> float:
        """Returns how long ago the least recently observed of these stages was, under any key."""
        newest: dict[str, float] = {}
        for (name, key), learned in self._learned.items():
            stage = key.partition(":")[0]
            if name == engine:
                newest[stage] = max(newest.get(stage, learned.at), learned.at)
        oldest = min((newest.get(stage, -inf) for stage in stages), default=-inf)
        return self._clock() - oldest

    def export(self) -> Mapping[tuple[str, str], Learned]:
        """Returns all estimates, by engine and key."""
        return dict(self._learned)

    def restore(self, engine: str, key: str, learned: Learned) -> None:
        """Takes what an earlier run knew; it counts as a prior, and as old as the clock's start."""
        at = self._clock()
        self._learned[engine, key] = replace(learned, at=at, observed=1, count=PRIOR_COUNT)

    def _relative(self, engine: str, key: str) -> Learned:
        stage = key.partition(":")[0]
        same = [
            (name == engine, learned.mean, learned)
            for (name, other), learned in self._learned.items()
            if other.partition(":")[0] == stage
        ]
        if not same:
            raise KeyError(f"nothing is known of the stage {stage}")
        return max(same, key=lambda row: row[:2])[2]


def _prior(seconds: float, now: float) -> Learned:
    spread = PRIOR_CV * seconds
    return Learned(seconds, spread * spread, seconds, PRIOR_COUNT, now)


DELIVERY_FLOOR_S = 0.05
DELIVERY_S_PER_BYTE, DELIVERY_CV = 0.25e-6, 0.5
"""Before an answer has been seen on its way: 0.5 s for 2 MB."""

DELIVERY_WEIGHT = 0.1


class DeliveryTimes:
    """Predicts how long an answer takes to its caller, by transport: a floor and seconds a byte.

    A measurement ends when the operating system has taken the last byte; `--budget_margin` covers
    the way from there. Pulled results are not measured: a validator answers a submission only after
    it has judged it, so their prediction stays the first one.
    """

    def __init__(self) -> None:
        self._rates: dict[str, Cost] = {}

    def predict(self, transport: str, size: int, z: float) -> float:
        """Returns the seconds for `size` bytes: the mean plus `z` standard deviations."""
        return DELIVERY_FLOOR_S + size * max(0.0, self._rate(transport).quantile(z))

    def observe(self, transport: str, size: int, seconds: float) -> None:
        """Learns from an answer; one without an asset says nothing about the rate."""
        if size <= 0:
            return
        old = self._rate(transport)
        limit = max(CLIP_FACTOR * old.mean, old.quantile(CLIP_DEVIATIONS))
        step = min(max(0.0, seconds - DELIVERY_FLOOR_S) / size, limit) - old.mean
        self._rates[transport] = Cost(
            old.mean + DELIVERY_WEIGHT * step,
            (1.0 - DELIVERY_WEIGHT) * (old.variance + DELIVERY_WEIGHT * step * step),
        )

    def _rate(self, transport: str) -> Cost:
        prior = Cost(DELIVERY_S_PER_BYTE, (DELIVERY_CV * DELIVERY_S_PER_BYTE) ** 2)
        return self._rates.get(transport, prior)
