"""Clocks: one of this miner's that nothing moves, and how far a server's is ahead of it. Pure.

What a server tells of its clock is the `Date` header of its answers.
"""

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


class RemoteClock:
    """How far a server's clock is ahead of this miner's.

    Of all offsets that its answers allow it takes the least: a time that is converted to this
    miner's clock comes too late rather than too early, and one that is converted to the server's is
    not in its future. Every answer bounds the offset; the bound that is tightest now is kept.

    Args:
        assumed: Returns the offset of a server whose answers have no date.
    """

    def __init__(self, assumed: Callable[[], float] = lambda: 0.0) -> None:
        self._assumed = assumed
        self._least: float | None = None
        self._heard_at = 0.0

    def offset(self, now: float) -> float:
        """Returns the seconds that the server's clock is ahead; negative if it is behind."""
        return self._bound(now)

    def dated(self, date: float | None, *, sent_at: float, answered_at: float) -> None:
        """Notes the date of an answer, which was taken between these two moments."""
        if date is None:
            return
        least, most = date - answered_at, date + DATE_STEP_S - sent_at
        # A clock that has been set back contradicts what was heard before.
        if self._least is None or not least <= self._bound(answered_at) <= most:
            self._least, self._heard_at = least, answered_at

    def _bound(self, now: float) -> float:
        if self._least is None:
            return self._assumed()
        return self._least - DRIFT * max(0.0, now - self._heard_at)
