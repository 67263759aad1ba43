"""When an engine that was lost is started again. Pure: a clock and events."""

from collections.abc import Callable

FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
"""Before the first attempt, and before later ones, each twice as long as the one before."""

STABLE_S = 300.0
"""An engine that has served for this many seconds begins again with the first pause."""

HOPELESS = 5
"""A miner that no engine serves ends once each has more losses and failed attempts in a row."""


class Restarts:
    """The attempts to start one engine.

    Args:
        clock: Monotonic clock, in seconds.

    Attributes:
        failures: Losses and failed attempts in a row, without `STABLE_S` of service between them.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._served_at: float | None = None
        self.failures = 0

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next attempt."""
        return min(FIRST_PAUSE_S * 2.0 ** max(0, self.failures - 1), MOST_PAUSE_S)

    @property
    def has_served(self) -> bool:
        """Whether it has served, so that there was room for it."""
        return self._served_at is not None

    @property
    def hopeless(self) -> bool:
        """Whether it has failed too often for a miner that has no other engine."""
        return self.failures > HOPELESS

    def lost(self) -> float:
        """Notes that it is lost; returns the moment."""
        now = self._clock()
        if self._served_at is not None and now - self._served_at >= STABLE_S:
            self.failures = 0
        self.failures += 1
        return now

    def failed(self) -> None:
        """Notes that an attempt failed."""
        self.failures += 1

    def served(self) -> float:
        """Notes that it serves; returns the moment."""
        self._served_at = self._clock()
        return self._served_at
