"""How long a stage will take: learned online, starting from the warm-up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp2

WEIGHT = 0.2
"""Weight of a new observation in the two running averages."""

DEVIATIONS = 2.0
"""Mean absolute deviations added to the mean; on normal noise, 95 of 100 runs are shorter."""

PRIOR_SPREAD = 0.1
"""Deviation assumed before anything is known, as a share of the warm-up time."""

SURPRISE = 4.0
"""An observation counts for at most this many predictions, so that one outlier teaches little."""

HALF_LIFE_S = 120.0
"""What was learned above the warm-up time is half forgotten after so long without observation."""


@dataclass(frozen=True)
class _Learned:
    mean: float
    deviation: float
    at: float

    @property
    def upper(self) -> float:
        return self.mean + DEVIATIONS * self.deviation


class StageEstimator:
    """Predicts the seconds of each stage, separately for text and image tasks.

    The prediction is mean + 2 x mean absolute deviation, both running averages (as TCP estimates
    its round trips: Jacobson, "Congestion avoidance and control", 1988). When nothing has been
    observed for a while, what exceeds the warm-up's time fades: otherwise one bad minute could
    raise the prediction above every budget, all requests would be dropped, and nothing would
    ever be observed again.

    Args:
        prior: Seconds per stage as the warm-up took them, each positive and finite.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, prior: Mapping[str, float], *, clock: Callable[[], float]) -> None:
        self._prior = {
            stage: _Learned(seconds, PRIOR_SPREAD * seconds, clock())
            for stage, seconds in prior.items()
        }
        self._learned: dict[tuple[str, str], _Learned] = {}
        self._clock = clock

    def predict(self, kind: str, stage: str) -> float:
        """Returns the predicted seconds of a stage.

        Raises:
            KeyError: The warm-up did not go through this stage.
        """
        prior = self._prior[stage]
        learned = self._learned.get((kind, stage), prior)
        excess = max(0.0, learned.upper - prior.upper)
        age = max(0.0, self._clock() - learned.at)
        return min(learned.upper, prior.upper) + excess * exp2(-age / HALF_LIFE_S)

    def observe(self, kind: str, stage: str, seconds: float) -> None:
        """Learns from a stage that took `seconds`; a stage that the warm-up lacked is ignored."""
        if stage not in self._prior:
            return
        old = self._learned.get((kind, stage), self._prior[stage])
        counted = min(seconds, SURPRISE * self.predict(kind, stage))
        mean = old.mean + WEIGHT * (counted - old.mean)
        deviation = old.deviation + WEIGHT * (abs(counted - old.mean) - old.deviation)
        self._learned[kind, stage] = _Learned(mean, deviation, self._clock())
