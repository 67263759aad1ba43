"""Clocks: one of this miner's that nothing moves, and how far a validator's is ahead of it. Pure.

A validator says when it may be asked again by its own clock, and counts every earlier pull. What it
says of its clock is the `Date` header of its answers.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

MAX_OFFSET_S = 12 * 3600.0
"""A date that is further from the wall clock is ignored."""

DATE_STEP_S = 2.5
"""Seconds by which a date may be behind its clock: it names whole seconds, and servers renew it
about once a second."""

DRIFT = 1e-4
"""Seconds per second by which two clocks may drift apart."""

REPEATED_S = 10.0
"""A refusal may lengthen the cooldown by this much, as the penalty for many of them."""

LONGEST_S = 3900.0
"""Longest cooldown by the published rules: an hour for a hotkey that is not registered. Many
violations may lengthen it."""

MAX_LATENESS_S = 300.0
"""Most that refusals may teach against what the dates say."""


class SteadyClock:
    """Seconds since the epoch that go on steadily while the wall clock is corrected.

    Args:
        wall: Wall clock, in seconds since the epoch.
        monotonic: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.wall = wall
        self._monotonic = monotonic
        self._epoch = wall() - monotonic()

    def __call__(self) -> float:
        """Returns the time."""
        return self._epoch + self._monotonic()

    def behind_wall(self) -> float:
        """Returns the seconds by which the wall clock is ahead: the sum of its corrections."""
        return self.wall() - self()


def http_date(header: str) -> float:
    """Returns a `Date` header in seconds since the epoch. A date without a zone is UTC.

    Raises:
        ValueError: It is no date.
    """
    try:
        date = parsedate_to_datetime(header[:64])
        return (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp()
    except (TypeError, OverflowError, IndexError) as error:
        raise ValueError("no date") from error


def parse_date(header: str | None, wall: float) -> float | None:
    """Returns a `Date` header in seconds since the epoch; None if there is none or it is absurd."""
    try:
        date = http_date(header or "")
    except ValueError:
        return None
    return date if abs(date - wall) <= MAX_OFFSET_S else None


class ValidatorClock:
    """How far one validator's clock is ahead of this miner's.

    Of all offsets that its answers allow it takes the least, with which this miner asks too late
    rather than too early. Every answer bounds the offset; the bound that is tightest now is kept.

    Args:
        assumed: Returns the offset of a validator whose answers have no date.
    """

    def __init__(self, assumed: Callable[[], float] = lambda: 0.0) -> None:
        self._assumed = assumed
        self._least: float | None = None
        self._heard_at = 0.0
        self._lateness = 0.0
        self._told = 0.0
        self._violations: int | None = None

    def offset(self, now: float) -> float:
        """Returns the seconds that the validator's clock is ahead; negative if it is behind."""
        if self._least is None:
            return self._assumed() - self._lateness
        return self._least - DRIFT * max(0.0, now - self._heard_at) - self._lateness

    def on_ours(self, until: float, now: float) -> float:
        """Converts a time of the validator to this miner's clock; 0 if it names none.

        A cooldown that would last longer than any does by the rules shows that the dates are of
        another clock, as a proxy's, if without them it would be shorter and not yet over.
        """
        ours, undated = until - self.offset(now), until - self._assumed()
        if ours > now + LONGEST_S and now < undated < ours:
            ours = undated
        return max(0.0, ours) if until > 0 else 0.0

    def dated(self, date: float | None, *, sent_at: float, answered_at: float) -> None:
        """Notes the date of an answer, which was taken between these two moments."""
        if date is None:
            return
        least, most = date - answered_at, date + DATE_STEP_S - sent_at
        kept = self.offset(answered_at) + self._lateness
        # A clock that has been set back contradicts what was heard before.
        if self._least is None or not least <= kept <= most:
            self._least, self._heard_at = least, answered_at

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
