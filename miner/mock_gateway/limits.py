"""Fixed one-minute windows, as a gateway's limiters count. Pure: a clock and numbers."""

from collections.abc import Callable

WINDOW_S = 60.0


class MinuteWindows:
    """Limits the calls per address and window; a window begins with its first call.

    Args:
        most: Calls in a window.
        clock: Any clock, in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._windows: dict[str, tuple[float, int]] = {}

    def allow(self, address: str) -> bool:
        """Counts a call, and returns whether it is within the limit."""
        now = self._clock()
        began, count = self._windows.get(address, (now, 0))
        if now >= began + WINDOW_S:
            began, count = now, 0
        if count >= self._most:
            return False
        self._windows[address] = (began, count + 1)
        return True
