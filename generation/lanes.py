"""Lanes: threads that take the work of an engine in the order of the requests' turns."""

import asyncio
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from generation.errors import EngineDead
from generation.plan import Turn

T = TypeVar("T")

_Turned = Literal["free", "expired", "closed"]


class TurnExpired(Exception):
    """Work left its lane, because its turn had not come in time."""


class LaneQueue(Generic[T]):
    """The order of a lane: the smallest turn first; of equal turns, the one that came first.

    Pure, so that a simulation can drive it with a clock of its own. A lane holds tens of items, so
    all operations may take linear time.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[Turn, int, T]] = []
        self._arrival = count()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        """Yields the items in the order in which `pop` would return them."""
        return (item for _, _, item in self._entries)

    def push(self, turn: Turn, item: T) -> None:
        """Adds an item behind those of smaller and equal turns."""
        insort(self._entries, (turn, next(self._arrival), item), key=lambda entry: entry[:2])

    def peek(self) -> T | None:
        """Returns the first item and leaves it there; None if there is none."""
        return self._entries[0][2] if self._entries else None

    def pop(self) -> T | None:
        """Removes and returns the first item; None if there is none."""
        return self._entries.pop(0)[2] if self._entries else None

    def remove(self, item: T) -> bool:
        """Removes this very object, wherever it stands; returns whether it was there."""
        for index, (_, _, waiting) in enumerate(self._entries):
            if waiting is item:
                del self._entries[index]
                return True
        return False


class Lane:
    """Threads for blocking work, driven from one event loop.

    The lane starts work in the order of the requests' turns, not in the order in which the work
    arrived: the first step of a younger request never delays an older one that is nearly done.
    Threads are started when they are first needed. They are daemons, so that one that hangs cannot
    keep the process alive.

    Args:
        name: Prefix of the threads' names.
        workers: How many pieces of work may run at once.
        prepare: Called first in each thread.
    """

    def __init__(
        self, name: str, workers: int, *, prepare: Callable[[], None] | None = None
    ) -> None:
        self._name = name
        self._prepare = prepare
        self._free = workers
        self._waiting: LaneQueue[asyncio.Future[_Turned]] = LaneQueue()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._serial = count()
        self._closed = False

    async def run(
        self,
        turn: Turn,
        work: Callable[[], T],
        *,
        before: Callable[[], None] = lambda: None,
        after: Callable[[BaseException | None], None] = lambda error: None,
        expires_in: float | None = None,
    ) -> T:
        """Runs blocking work in a thread once its turn has come.

        Cancelling the caller while it waits gives up its place. Cancelling it while the work runs
        releases the caller at once; the thread ends the work unobserved and is free only then.

        Args:
            turn: Place of the request; the smallest goes first.
            work: What to run.
            before: Called in the event loop right before the work starts; may raise to call it off.
            after: Called in the event loop when the work has ended, with its error or None, even if
                the caller has left by then. Not called for work that was never started.
            expires_in: Seconds to wait for the turn at most; None waits without a limit.

        Raises:
            TurnExpired: The turn did not come in time, or `expires_in` is negative.
            EngineDead: The work raised something that is no `Exception` (`SystemExit`, say), its
                thread died, or the lane was closed.
        """
        loop = asyncio.get_running_loop()
        await self._take_slot(loop, turn, expires_in)
        try:
            self._require_open()
            before()
            job = self._start(loop, work, after)
        except BaseException:
            self._release()
            raise
        try:
            outcome = await job.outcome
        finally:
            if job.outcome.done() and not job.outcome.cancelled():
                # Release on the next loop iteration, so that the finishing request can queue its
                # next step before a younger one takes the thread.
                loop.call_soon(self._release)
            del job
        if outcome.error is not None:
            try:
                raise outcome.error
            finally:
                # The error's traceback holds this frame. Without the way back, what its frames
                # hold is freed with the error and does not wait for the garbage collector.
                del outcome
        result: T = outcome.result
        return result

    async def close(self, limit_s: float) -> bool:
        """Ends the threads; work that waits, and work that comes later, raises EngineDead.

        Args:
            limit_s: Seconds to wait at most for the work that is running.

        Returns:
            Whether all threads have ended.
        """
        self._closed = True
        while (waiting := self._waiting.pop()) is not None:
            if not waiting.done():
                waiting.set_result("closed")
        workers = tuple(self._workers)
        for worker in workers:
            worker.stop()
        return await asyncio.to_thread(_join, workers, limit_s)

    async def _take_slot(
        self, loop: asyncio.AbstractEventLoop, turn: Turn, expires_in: float | None
    ) -> None:
        self._require_open()
        if expires_in is not None and expires_in < 0:
            raise TurnExpired
        if self._free:
            self._free -= 1
            return
        waiting: asyncio.Future[_Turned] = loop.create_future()
        self._waiting.push(turn, waiting)
        timer = None
        if expires_in is not None and math.isfinite(expires_in):
            timer = loop.call_later(expires_in, self._expire, waiting)
        try:
            turned = await waiting
        except asyncio.CancelledError:
            if waiting.cancelled():
                self._waiting.remove(waiting)
            elif waiting.result() == "free":
                # The turn came at the moment of the cancellation: it goes to the next in line.
                self._release()
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if turned == "expired":
            raise TurnExpired
        self._require_open()

    def _require_open(self) -> None:
        if self._closed:
            raise EngineDead(f"the {self._name} lane is closed")

    def _expire(self, waiting: asyncio.Future[_Turned]) -> None:
        if not waiting.done():
            self._waiting.remove(waiting)
            waiting.set_result("expired")

    def _release(self) -> None:
        while (waiting := self._waiting.pop()) is not None:
            if not waiting.done():
                waiting.set_result("free")
                return
        self._free += 1

    def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Callable[[], Any],
        after: Callable[[BaseException | None], None],
    ) -> "_Job":
        if self._idle:
            worker = self._idle.pop()
        else:
            worker = _Worker(f"{self._name}_{next(self._serial)}", self._prepare, self._retire)
            self._workers.append(worker)
        job = _Job(work, after, self._finish, loop, loop.create_future())
        worker.take(job)
        return job

    def _finish(self, worker: "_Worker", outcome: "_Outcome") -> None:
        job, worker.job = worker.job, None
        if job is None:
            return
        if worker in self._workers:
            self._idle.append(worker)
        try:
            job.after(outcome.error)
        finally:
            if job.outcome.cancelled():
                self._release()
            else:
                job.outcome.set_result(outcome)

    def _retire(self, worker: "_Worker", cause: BaseException | None) -> None:
        """Forgets a thread that has ended, and fails what it was given last."""
        self._workers.remove(worker)
        if worker in self._idle:
            self._idle.remove(worker)
        reason = "it was stopped" if cause is None else f"{type(cause).__name__}: {cause}"
        self._finish(worker, _Outcome(None, EngineDead(f"thread {worker.name} ended: {reason}")))


class _Outcome(NamedTuple):
    result: Any
    error: BaseException | None


@dataclass(frozen=True, eq=False)
class _Job:
    work: Callable[[], Any]
    after: Callable[[BaseException | None], None]
    finish: Callable[["_Worker", _Outcome], None]
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[_Outcome]


class _Worker:
    """One thread, which reports to the event loop of the job that it was given last.

    Attributes:
        name: Of the thread.
        job: What it was given and has not reported yet; only the event loop changes it. So a job
            is never lost, wherever in its code the thread dies.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], None] | None,
        retire: Callable[["_Worker", BaseException | None], None],
    ) -> None:
        self.name = name
        self.job: _Job | None = None
        self._prepare = prepare
        self._retire = retire
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)

    def take(self, job: _Job) -> None:
        self.job, self._loop = job, job.loop
        self._inbox.put(job)
        if self._thread.ident is None:
            # Not earlier: if it dies in its preparation, it has a loop to report to.
            self._thread.start()

    def stop(self) -> None:
        self._inbox.put(None)

    def join(self, limit_s: float) -> bool:
        self._thread.join(max(0.0, limit_s))
        return not self._thread.is_alive()

    def _main(self) -> None:
        cause: BaseException | None = None
        try:
            if self._prepare is not None:
                self._prepare()
            while self._serve():
                pass
        except BaseException as error:
            cause = error
        finally:
            self._report(self._retire, cause)

    def _serve(self) -> bool:
        # A call of its own for each job, so that an idle thread holds no reference to the last one.
        job = self._inbox.get()
        if job is None:
            return False
        try:
            self._report(job.finish, _outcome_of(job.work, self.name))
        finally:
            del job  # The frame lives as long as an error that passed it.
        return True

    def _report(self, receive: Callable[["_Worker", Any], None], what: object) -> None:
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(receive, self, what)
            except RuntimeError:
                # The loop has closed at this moment: nobody receives the report.
                return


def _outcome_of(work: Callable[[], Any], thread: str) -> _Outcome:
    try:
        return _Outcome(work(), None)
    except Exception as error:
        return _Outcome(None, error)
    except BaseException as error:
        dead = EngineDead(f"{type(error).__name__} in thread {thread}")
        dead.__cause__ = error
        return _Outcome(None, dead)


def _join(workers: tuple[_Worker, ...], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    return all(worker.join(end - time.monotonic()) for worker in workers)
