"""How long an event loop cannot run anything, because a call blocks it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

_SCHEDULING = Path("/proc/thread-self/schedstat")
"""What Linux counts of this thread: nanoseconds on a core, and ready to run without one."""

BEAT_S = 0.002


class Lag:
    """The largest delay of a heartbeat.

    The time for which the loop's thread was ready to run and other processes had the cores is left
    out: it says how busy the machine is, and nothing of the calls in the loop.

    Attributes:
        largest_s: The longest that the loop was blocked, in seconds.
    """

    def __init__(self) -> None:
        self.largest_s = 0.0

    async def beat(self) -> None:
        """Runs in the loop that is measured, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due, queued_s = loop.time() + BEAT_S, without_a_core_s()
            try:
                await asyncio.sleep(BEAT_S)
            finally:  # Cancelled while a block ends, it counts that block too.
                late_s = loop.time() - due
                self.largest_s = max(self.largest_s, late_s - (without_a_core_s() - queued_s))


def without_a_core_s() -> float:
    """Seconds for which this thread has been ready to run without a core; 0 if nothing counts."""
    if not _SCHEDULING.exists():
        return 0.0
    return int(_SCHEDULING.read_text().split()[1]) / 1e9


class Stopwatch:
    """Seconds since it was made, less those for which this thread waited for a core."""

    def __init__(self) -> None:
        self._started, self._queued_s = time.monotonic(), without_a_core_s()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started - (without_a_core_s() - self._queued_s)


@asynccontextmanager
async def measured(loop: asyncio.AbstractEventLoop) -> AsyncIterator[Lag]:
    """Measures a loop, this one or that of another thread, until the block ends."""
    lag = Lag()
    if loop is asyncio.get_running_loop():
        task = asyncio.create_task(lag.beat())
        await asyncio.sleep(0)
    else:
        task = asyncio.run_coroutine_threadsafe(lag.beat(), loop)  # type: ignore[assignment]
    try:
        yield lag
    finally:
        task.cancel()
        await asyncio.sleep(0)
