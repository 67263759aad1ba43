"""How long an event loop cannot run anything, because a call blocks it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

BEAT_S = 0.002


class Lag:
    """The largest delay of a heartbeat.

    Attributes:
        largest_s: The longest that the loop was blocked, in seconds.
    """

    def __init__(self) -> None:
        self.largest_s = 0.0

    async def beat(self) -> None:
        """Runs in the loop that is measured, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT_S
            try:
                await asyncio.sleep(BEAT_S)
            finally:  # Cancelled while a block ends, it counts that block too.
                self.largest_s = max(self.largest_s, loop.time() - due)


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
