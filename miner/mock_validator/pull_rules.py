"""The published rules of a validator from which miners pull tasks. Pure: a clock and values.

They are those of the subnet's validator: when a miner may pull, what a submission is worth, and
what breaking the rules costs. Cooldowns are whole seconds since the epoch, as on the wire.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from miner.mock_validator.tasks import TrialTask
from protocol.consent import decode_signature, signing_payload

WINDOW_S = 4 * 3600
"""Seconds for which an accepted result counts."""

FIDELITY_ALPHA = 0.05
"""Weight of the newest score in the moving average that feedback reports."""


@dataclass(frozen=True)
class Rules:
    """The numbers of the rules; the defaults are the published ones.

    Attributes:
        threshold: Least score that is accepted.
        cooldown_s: Least seconds from an assignment to the next pull.
        throttle_s: Seconds of the time to the end of the validation that are deducted from the
            cooldown.
        penalty_s: Seconds added to the cooldown for a score below the threshold or a bad signature.
        free_violations: Pulls during a cooldown that cost nothing.
        violation_penalty_s: Seconds added to the cooldown by each further one.
        lock_s: Seconds after a submission within which the next one is ignored.
        unregistered_s: Cooldown of an unknown hotkey.
    """

    threshold: float = 0.6
    cooldown_s: int = 300
    throttle_s: int = 30
    penalty_s: int = 600
    free_violations: int = 100
    violation_penalty_s: int = 10
    lock_s: int = 30
    unregistered_s: int = 3600


@dataclass(frozen=True)
class Pulled:
    """The answer to a pull."""

    task: TrialTask | None = None
    cooldown_until: int = 0
    violations: int = 0


@dataclass(frozen=True)
class Submission:
    """The parts of a submission that the rules read."""

    task_id: str
    results: str = field(repr=False)
    submit_time: int
    signature: str


@dataclass(frozen=True)
class Verdict:
    """The answer to a submission.

    Attributes:
        code: "accepted", "below_threshold", "empty", "validation_failed", "bad_signature",
            "wrong_task", "locked", "too_soon", or "not_registered".
        score: The score in the feedback: 0.0 for everything but an accepted result.
        validation_failed: Whether the validator's own service failed.
        cooldown_until: End of the miner's cooldown.
    """

    code: str
    score: float = 0.0
    validation_failed: bool = False
    cooldown_until: int = 0


@dataclass
class _Miner:
    task: TrialTask | None = None
    assigned_at: float = 0.0
    cooldown_until: int = 0
    violations: int = 0
    early_pulls: int = 0
    locked_until: float = 0.0
    accepted_at: float = float("-inf")
    average: float = 1.0
    window: deque[float] = field(default_factory=deque)


class PullRules:
    """What a validator remembers of its miners.

    Args:
        hotkey: The validator's hotkey.
        registered: Returns whether a hotkey is on the subnet.
        verify: Returns whether a signature over a payload is a hotkey's: (hotkey, payload, bytes).
        next_task: Returns a task that has not been assigned, or None.
        rules: The numbers of the rules.
        clock: Wall clock, in seconds since the epoch.
    """

    def __init__(
        self,
        hotkey: str,
        *,
        registered: Callable[[str], bool],
        verify: Callable[[str, bytes, bytes], bool],
        next_task: Callable[[], TrialTask | None],
        clock: Callable[[], float],
        rules: Rules | None = None,
    ) -> None:
        self.rules = rules or Rules()
        self._hotkey = hotkey
        self._registered = registered
        self._verify = verify
        self._next_task = next_task
        self._clock = clock
        self._miners: dict[str, _Miner] = {}

    def pull(self, hotkey: str) -> Pulled:
        """Answers a pull; a task that is still assigned is returned again."""
        now = self._clock()
        if not self._registered(hotkey):
            return Pulled(cooldown_until=int(now) + self.rules.unregistered_s)
        miner = self._of(hotkey)
        if now < miner.cooldown_until:
            miner.violations += 1
            miner.early_pulls += 1
            if miner.violations > self.rules.free_violations:
                miner.cooldown_until += self.rules.violation_penalty_s
            return Pulled(cooldown_until=miner.cooldown_until, violations=miner.violations)
        if miner.task is None:
            miner.task, miner.assigned_at = self._next_task(), now
        return Pulled(task=miner.task)

    def assigned(self, hotkey: str) -> tuple[TrialTask, float] | None:
        """Returns the task of a miner and the time of its assignment, if it has one."""
        miner = self._miners.get(hotkey)
        return None if miner is None or miner.task is None else (miner.task, miner.assigned_at)

    def submit(self, hotkey: str, submission: Submission) -> Verdict | None:
        """Checks a submission.

        Returns:
            The verdict, or None if the results must be validated and `judged` must follow.
        """
        if not self._registered(hotkey):
            until = int(self._clock()) + self.rules.unregistered_s
            return Verdict("not_registered", cooldown_until=until)
        miner = self._of(hotkey)
        if not self._signed(hotkey, miner, submission):
            return self._reset(miner, "bad_signature", penalty_s=self.rules.penalty_s)
        miner.violations = max(0, miner.violations - 1)
        if miner.task is None or miner.task.id != submission.task_id:
            return Verdict("wrong_task", cooldown_until=miner.cooldown_until)
        if not submission.results:
            return self._reset(miner, "empty")
        if self._clock() < miner.locked_until:
            return Verdict("locked", cooldown_until=miner.cooldown_until)
        miner.locked_until = self._clock() + self.rules.lock_s
        return None

    def judged(self, hotkey: str, score: float | None) -> Verdict:
        """Ends the validation of a submission.

        Args:
            hotkey: The miner's hotkey.
            score: 0..1, or None if the validation service failed.
        """
        miner, now = self._of(hotkey), self._clock()
        if score is None:
            return self._reset(miner, "validation_failed", validation_failed=True)
        if now < miner.accepted_at + self.rules.cooldown_s - self.rules.throttle_s:
            return Verdict("too_soon", cooldown_until=miner.cooldown_until)
        if score < self.rules.threshold:
            return self._reset(miner, "below_threshold", penalty_s=self.rules.penalty_s)
        miner.accepted_at = now
        miner.average += FIDELITY_ALPHA * (min(1.0, score) - miner.average)
        miner.window.append(now)
        return self._reset(miner, "accepted", score=min(1.0, score))

    def early_pulls(self, hotkey: str) -> int:
        """Returns how often a miner has pulled during a cooldown, ever."""
        return self._of(hotkey).early_pulls

    def window(self, hotkey: str) -> int:
        """Returns the number of a miner's results that were accepted in the last four hours."""
        window = self._of(hotkey).window
        while window and window[0] < self._clock() - WINDOW_S:
            window.popleft()
        return len(window)

    def average(self, hotkey: str) -> float:
        """Returns the moving average of a miner's accepted scores."""
        return self._of(hotkey).average

    def _of(self, hotkey: str) -> _Miner:
        return self._miners.setdefault(hotkey, _Miner())

    def _signed(self, hotkey: str, miner: _Miner, submission: Submission) -> bool:
        signature = decode_signature(submission.signature)
        payload = signing_payload(
            submit_time=submission.submit_time,
            prompt=miner.task.wire if miner.task else "",
            validator_hotkey=self._hotkey,
            miner_hotkey=hotkey,
        )
        return signature is not None and self._verify(hotkey, payload, signature)

    def _reset(
        self,
        miner: _Miner,
        code: str,
        *,
        score: float = 0.0,
        validation_failed: bool = False,
        penalty_s: int = 0,
    ) -> Verdict:
        cooldown = self.rules.cooldown_s + penalty_s
        until = self._clock() + cooldown
        if miner.task is not None:
            until = max(until - self.rules.throttle_s, miner.assigned_at + cooldown)
        miner.task, miner.cooldown_until = None, int(until)
        return Verdict(code, score, validation_failed, miner.cooldown_until)
