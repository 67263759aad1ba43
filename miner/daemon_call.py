"""Blocking calls that may never return."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T], limit_s: float) -> T:
    """Runs a blocking call in a thread of its own that keeps neither loop nor process waiting.

    Executors join their threads when the process ends; a call that hangs would hold it for ever.

    Raises:
        TimeoutError: The call took longer than `limit_s`; its thread is left behind.
        Exception: Whatever the call raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, daemon=True).start()
    # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the result.
    async with asyncio.timeout(limit_s):
        return await future


def in_words(error: Exception) -> str:
    """Says in one short line what a call raised."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"[:200]
