"""Blocking calls that may never return."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from protocol.text import printable

T = TypeVar("T")


class StillRunning(Exception):
    """A call was not made because the previous one has not returned; says which, and its age."""


async def in_daemon_thread(
    function: Callable[[], T],
    limit_s: float,
    *,
    discard: Callable[[T], object] | None = None,
) -> T:
    """Runs a blocking call in a daemon thread, which keeps neither the loop nor the process.

    Executors join their threads when the process ends, so a call that hangs would hold it forever.

    Args:
        function: The call.
        limit_s: Seconds after which the caller gives up.
        discard: Frees a result that arrives after the caller has given up. Called in a daemon
            thread.

    Raises:
        TimeoutError: The call took longer than `limit_s`; its thread goes on.
        Exception: Whatever the call raised.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if error is not None:
            if not future.done():
                future.set_exception(error)
        elif future.done():
            free(result)  # type: ignore[arg-type]
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def free(result: T) -> None:
        if discard is not None:
            threading.Thread(target=discard, args=(result,), daemon=True).start()

    def run() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # The loop is closed, so the caller has gone.
            if failure is None:
                free(result)  # type: ignore[arg-type]

    threading.Thread(target=run, daemon=True).start()
    try:
        # Not wait_for: in Python 3.11 it loses a cancellation that arrives together with a result.
        async with asyncio.timeout(limit_s):
            return await future
    except BaseException:
        if future.done() and not future.cancelled() and future.exception() is None:
            free(future.result())  # It arrived together with the timeout or the cancellation.
        raise


class LoneCall(Generic[T]):
    """A blocking call that may hang, and of which at most one runs at any time.

    Repeating a call that hangs would leave one more thread, with what it holds, at every attempt.

    Args:
        function: The call.
        name: What the call is, for messages: "the attempt to connect".
        limit_s: Seconds after which a caller gives up.
        discard: Frees a result that arrives after its caller has given up. Called in a daemon
            thread.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        function: Callable[[], T],
        name: str,
        limit_s: float,
        *,
        discard: Callable[[T], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._function = function
        self._name = name
        self._limit_s = limit_s
        self._discard = discard
        self._clock = clock
        self._running_since: float | None = None

    async def __call__(self) -> T:
        """Makes the call; call this from one event loop only.

        Raises:
            StillRunning: The previous call has not returned.
            TimeoutError: The call took too long; its thread goes on.
            Exception: Whatever the call raised.
        """
        since = self._running_since
        if since is not None:
            age = self._clock() - since
            raise StillRunning(f"{self._name} of {age:.0f} s ago still hangs, no other is made")
        self._running_since = self._clock()
        return await in_daemon_thread(self._run, self._limit_s, discard=self._discard)

    def _run(self) -> T:
        try:
            return self._function()
        finally:
            self._running_since = None


def in_words(error: Exception) -> str:
    """Says in one short line what a call raised."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, StillRunning):
        return str(error)
    return printable(f"{type(error).__name__}: {error}")
