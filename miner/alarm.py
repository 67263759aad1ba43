"""Timers of the service: an alarm that can be set again, and a limit on repeated log lines."""

import asyncio
from collections.abc import Callable

_LEAST_S = 0.001


class Alarm:
    """Calls a function at the moment that it was set to last.

    Args:
        ring: Called in the event loop.
        clock: The clock of the moments, monotonic, in seconds.
    """

    def __init__(self, ring: Callable[[], None], clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float | None) -> None:
        """Sets it, in the place of what it was set to; None turns it off."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if at is not None:
            # A little later: at the moment itself, a clock may round to just before it.
            delay = max(_LEAST_S, at - self._clock() + _LEAST_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)


class Seldom:
    """Logs something that may happen many times a second, but seldom.

    Args:
        every_s: Least seconds between two lines.
        log: Receives a format and its values.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self, every_s: float, log: Callable[..., None], clock: Callable[[], float]
    ) -> None:
        self._every_s = every_s
        self._log = log
        self._clock = clock
        self._logged_at = -every_s

    def __call__(self, what: str, why: str) -> None:
        """Logs what happened and why, unless the last line is more recent than that."""
        now = self._clock()
        if now - self._logged_at >= self._every_s:
            self._logged_at = now
            self._log("{}: {}", what, why)
