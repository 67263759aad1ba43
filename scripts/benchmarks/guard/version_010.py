"""The guard of version 0.1.0, kept to compare with: it adds up the GPU seconds of all admitted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp2

STAGES = ("text_to_image", "background", "scene_code", "splats", "encode")
GPU_STAGES = frozenset({"text_to_image", "scene_code", "splats"})
MAX_PENDING, MAX_PENDING_PER_CALLER = 32, 8

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


@dataclass(frozen=True)
class Decision:
    """What the guard says about a request, now.

    Attributes:
        go: Whether to go on with it.
        reason_code: "ok", "predicted_late", "predicted_late_stage" or "deadline_passed".
        reason: One sentence with the numbers.
        predicted_s: Seconds until it would be answered: waiting for the GPU and its own stages.
        left_s: Seconds until its deadline; negative once that has passed.
    """

    go: bool
    reason_code: str
    reason: str
    predicted_s: float
    left_s: float


@dataclass
class _Work:
    kind: str
    received_at: float
    budget_s: float
    waiting: list[str]
    running: str | None = None
    since: float = field(default=0.0)


class TimingGuard:
    """Drops a request on arrival, or before any of its stages, when it would be late.

    Not safe for several threads: everything is called from the service's event loop.

    Args:
        estimator: Predicts the seconds of a stage.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        margin_s: Part of every budget kept for delivering the answer.
        clock: Monotonic clock, in seconds; the one that gave `received_at`.
    """

    def __init__(
        self,
        estimator: StageEstimator,
        *,
        budget_s: float,
        margin_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._estimator = estimator
        self._budget_s = budget_s
        self._margin_s = margin_s
        self._clock = clock
        self._works: dict[str, _Work] = {}

    def budget(self, allowed_s: float | None = None) -> float:
        """Returns the seconds a request has: min(own budget, allowed) - margin, at least 0."""
        allowed = self._budget_s if allowed_s is None else min(self._budget_s, allowed_s)
        return max(0.0, allowed - self._margin_s)

    def predict(self, kind: str, stages: Sequence[str]) -> float:
        """Returns the predicted seconds of these stages on an idle machine."""
        return sum(self._estimator.predict(kind, stage) for stage in stages)

    def backlog(self, *, before: str | None = None) -> float:
        """Returns the predicted GPU seconds left of all admitted requests.

        Args:
            before: Count only the requests that were admitted before this one.
        """
        total = 0.0
        for request_id, work in self._works.items():
            if request_id == before:
                break
            total += self._gpu_seconds_left(work)
        return total

    def admit(
        self,
        request_id: str,
        kind: str,
        stages: Sequence[str],
        received_at: float,
        budget_s: float,
    ) -> Decision:
        """Decides about a request on arrival; an accepted one is in the backlog until `forget`.

        Args:
            request_id: Ours, unique.
            kind: "text" or "image".
            stages: What it has to go through, in order.
            received_at: When its time began to run.
            budget_s: How much it has, as `budget` gives it.
        """
        work = _Work(kind, received_at, budget_s, list(stages))
        decision = self._decide("predicted_late", work, self.backlog(), list(stages))
        if decision.go:
            self._works[request_id] = work
        return decision

    def start_stage(self, request_id: str, stage: str) -> Decision:
        """Decides about an admitted request right before `stage`, and notes that it starts.

        Stages that come before `stage` count as done. Other requests delay this one only if it
        needs the GPU again after this stage.
        """
        work = self._works[request_id]
        left = work.waiting[work.waiting.index(stage) :]
        needs_gpu_again = any(later in GPU_STAGES for later in left[1:])
        waiting = self.backlog(before=request_id) if needs_gpu_again else 0.0
        work.running = None
        decision = self._decide("predicted_late_stage", work, waiting, left)
        if decision.go:
            work.waiting, work.running, work.since = left[1:], stage, self._clock()
        return decision

    def forget(self, request_id: str, timings: Mapping[str, float] | None = None) -> None:
        """Takes a request out of the backlog and learns from the stages that it went through."""
        work = self._works.pop(request_id)
        for stage, seconds in (timings or {}).items():
            self._estimator.observe(work.kind, stage, seconds)

    def _decide(self, late: str, work: _Work, waiting: float, stages: Sequence[str]) -> Decision:
        left = work.received_at + work.budget_s - self._clock()
        working = self.predict(work.kind, stages)
        predicted = waiting + working
        numbers = (
            f"predicted {predicted:.2f} s ({waiting:.2f} s waiting for the GPU, {working:.2f} s of "
            f"work), {max(0.0, left):.2f} s left of {work.budget_s:.2f} s"
        )
        if left <= 0.0 and late != "predicted_late":
            return Decision(False, "deadline_passed", f"too late: {numbers}", predicted, left)
        if predicted > left:
            return Decision(False, late, f"would be late: {numbers}", predicted, left)
        return Decision(True, "ok", f"in time: {numbers}", predicted, left)

    def _gpu_seconds_left(self, work: _Work) -> float:
        total = self.predict(work.kind, [stage for stage in work.waiting if stage in GPU_STAGES])
        if work.running in GPU_STAGES:
            elapsed = self._clock() - work.since
            total += max(0.0, self._estimator.predict(work.kind, work.running) - elapsed)
        return total
