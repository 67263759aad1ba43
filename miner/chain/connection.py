"""One connection to a node of the chain. Knows threads and time limits, not Bittensor."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from miner.daemon_call import LoneCall, in_daemon_thread

CLOSE_LIMIT_S = 15.0
"""Seconds that closing a connection may take; the library gives the node 10 to say goodbye."""

T = TypeVar("T")


class Connection:
    """Opens a connection when a call needs one, and closes it when a call in it fails.

    At most one call and one attempt to connect are under way. An attempt that hangs is not
    repeated; if it returns after all, its connection is closed.

    Args:
        connect: Opens the connection, an object with `close()`. Blocks.
        time_limit_s: Seconds that a call may take, connecting included.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        time_limit_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._time_limit_s = time_limit_s
        self._connect = LoneCall(
            connect, "the attempt to connect", time_limit_s, discard=_close, clock=clock
        )
        self._open: Any = None
        self._calling = asyncio.Lock()  # The library's connection takes one call at a time.

    async def call(self, function: Callable[[Any], T]) -> T:
        """Calls a blocking function with the connection, in a daemon thread.

        Raises:
            TimeoutError: It took too long, or connecting did.
            miner.daemon_call.StillRunning: An earlier attempt to connect hangs.
            Exception: Whatever connecting or the function raised.
        """
        limit_s = self._time_limit_s
        async with self._calling:
            try:
                async with asyncio.timeout(limit_s):
                    if self._open is None:
                        self._open = await self._connect()
                    return await in_daemon_thread(partial(function, self._open), limit_s)
            except Exception:
                await self._disconnect()
                raise

    async def close(self) -> None:
        """Waits for a call that is under way and closes the connection."""
        async with self._calling:
            await self._disconnect()

    async def _disconnect(self) -> None:
        """Closes the connection, which also ends a call that hangs in it."""
        closing, self._open = self._open, None
        if closing is not None:
            with contextlib.suppress(Exception):
                await in_daemon_thread(partial(_close, closing), CLOSE_LIMIT_S)


def _close(connection: Any) -> None:
    with contextlib.suppress(Exception):  # It is not used again, whatever state it is in.
        connection.close()
