"""How far a validator's clock is ahead of this miner's. Pure.

A validator says when it may be asked again by its own clock, and counts every earlier pull.
"""

import math
from collections.abc import Callable

from miner.transports.clocks import RemoteClock

REPEATED_S = 10.0
"""A refusal may lengthen the cooldown by this much, as the penalty for many of them."""

LONGEST_S = 3900.0
"""Longest cooldown by the published rules: an hour for a hotkey that is not registered. Many
violations may lengthen it."""

MAX_LATENESS_S = 300.0
"""Most that refusals may teach against what the dates say."""


class ValidatorClock(RemoteClock):
    """How far one validator's clock is ahead of this miner's: see `RemoteClock`.

    With the least offset, this miner asks too late rather than too early.

    Args:
        assumed: Returns the offset of a validator whose answers have no date.
    """

    def __init__(self, assumed: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__(assumed)
        self._lateness = 0.0
        self._told = 0.0
        self._violations: int | None = None

    def offset(self, now: float) -> float:
        """Returns the seconds that the validator's clock is ahead; negative if it is behind."""
        return super().offset(now) - self._lateness

    def on_ours(self, until: float, now: float) -> float:
        """Converts a time of the validator to this miner's clock; 0 if it names none.

        A cooldown that would last longer than any does by the rules shows that the dates are of
        another clock, as a proxy's, if without them it would be shorter and not yet over.
        """
        ours, undated = until - self.offset(now), until - self._assumed()
        if ours > now + LONGEST_S and now < undated < ours:
            ours = undated
        return max(0.0, ours) if until > 0 else 0.0

    def granted(self, violations: int) -> None:
        """Notes a pull that brought a task."""
        self._violations = violations

    def submitted(self, until: float) -> None:
        """Notes the answer to a submission: the end of the cooldown that it told, 0 for none.

        By the published rules it also takes back one violation.
        """
        self._told = until or self._told
        self._violations = max(0, (self._violations or 0) - 1)

    def refused(
        self,
        until: float,
        violations: int,
        date: float | None,
        *,
        sent_at: float,
        answered_at: float,
    ) -> None:
        """Notes a pull without a task, and learns if it came too early by the validator's clock.

        Args:
            until: The end of the cooldown, by the validator's clock; 0 for none.
            violations: Pulls during a cooldown, as the validator counts them.
            date: The date of the answer.
            sent_at: When the pull was sent.
            answered_at: When the answer was there.
        """
        believed_over = self.offset(sent_at) >= until - sent_at
        if date is not None and until > date and believed_over:
            # The validator's clock may have been set back a little: only the newest date counts.
            self._least = None
            self.dated(date, sent_at=sent_at, answered_at=answered_at)
        counted = self._violations is not None and violations > self._violations
        # Only if the cooldown is the one told before, the clocks must be why it was not over.
        repeated = 0 < self._told <= until <= self._told + REPEATED_S
        excess = self.offset(sent_at) - (self._told - sent_at)
        if counted and repeated and excess >= 0.0:
            lateness = 2.0 * self._lateness + math.ceil(excess) + 1.0
            self._lateness = min(MAX_LATENESS_S, lateness)
        self._violations, self._told = violations, until
