"""An event loop in which waiting takes no time, for code with timers and for lanes."""

import asyncio
import functools
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pytest

from generation.lanes import Lane

P = ParamSpec("P")
T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it; `time()` starts at 1000.

    Attributes:
        now: Its time, in seconds.
        working: How many threads do something that takes no time; until they end or sleep, the
            time stands still.
    """

    def __init__(self) -> None:
        self.now = 1000.0
        self.working = 0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def hold_thread(self, seconds: float) -> None:
        """Blocks the calling thread, which counts as working, for as many seconds of this loop."""
        over = threading.Event()

        def begin() -> None:
            self.working -= 1
            self.call_later(seconds, end)

        def end() -> None:
            self.working += 1
            over.set()

        self.call_soon_threadsafe(begin)
        over.wait()


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or (timeout > 0 and self._loop.working):
            return super().select(None)
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


def clock() -> float:
    """Seconds on the running loop's clock."""
    return asyncio.get_running_loop().time()


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test in a `VirtualLoop`."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run


def threads_take_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in the loop what goes into threads: the virtual clock would jump while they work."""

    async def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)


def lanes_take_virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets no time pass while a lane's thread works, except where it calls `hold_thread`."""
    start, finish = Lane._start, Lane._finish

    def counted_start(lane: Lane, loop: VirtualLoop, *job: Any) -> Any:
        loop.working += 1
        return start(lane, loop, *job)

    def counted_finish(lane: Lane, worker: Any, outcome: Any) -> None:
        if worker.job is not None:
            worker.job.loop.working -= 1
        finish(lane, worker, outcome)

    monkeypatch.setattr(Lane, "_start", counted_start)
    monkeypatch.setattr(Lane, "_finish", counted_finish)
