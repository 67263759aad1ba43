"""Ends a process that neither goes on nor ends."""

import asyncio
import faulthandler
import os

BEATS = 10
"""How often within the limit the event loop shows that it turns."""

_STDERR = 2  # By number: `sys.stderr` may have been replaced by an object without a file.


class LastResort:
    """Prints the stack of every thread and exits with 1 once nothing else would end the process.

    faulthandler keeps the time in a thread of C code. A Python signal handler or thread would need
    the interpreter, which is what may be held.

    Args:
        limit_s: Seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._stderr = _never_waiting(_STDERR)
        self._beating: asyncio.Task[None] | None = None
        self._ends = False

    def watch_loop(self) -> None:
        """From now on, nothing may hold the running event loop or the interpreter for the limit.

        Call this when everything is loaded: to load large libraries from a slow disk holds the
        interpreter, and is no fault.
        """
        if not self._ends:
            self._beating = asyncio.create_task(self._beat())

    def process_ends(self) -> None:
        """From the first call on, the process has to end within the limit."""
        if self._ends:
            return
        self._ends = True
        if self._beating is not None:
            self._beating.cancel()
        self._set()

    @staticmethod
    def call_off() -> None:
        """Lets the process live on, because the program has come to its end."""
        faulthandler.cancel_dump_traceback_later()

    async def _beat(self) -> None:
        while True:
            self._set()
            await asyncio.sleep(self._limit_s / BEATS)

    def _set(self) -> None:
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=self._stderr)


def _never_waiting(handle: int) -> int:
    """Returns another way to the same file: a pipe that nobody reads must not hold the last words.

    Of what cannot be opened again, as a socket, the handle itself.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{handle}", flags)
    except OSError:
        return handle
