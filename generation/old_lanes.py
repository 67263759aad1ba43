"""Worker threads that serve the oldest request first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

T = TypeVar("T")

_CPU_WORKERS = 2


class Lane:
    """Threads for blocking work, driven from one event loop.

    Work that waits is started in the order of its requests, not of its own arrival: a request that
    is nearly finished is not held up by the first stage of a younger one.

    Args:
        name: Name of the threads.
        workers: Number of threads.
        prepare: Called first in each thread.
    """

    def __init__(
        self, name: str, workers: int, *, prepare: Callable[[], None] | None = None
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name, initializer=prepare)
        self._free = workers
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()

    async def run(self, order: int, work: Callable[[], T], *, before: Callable[[], None]) -> T:
        """Runs blocking work in a thread once it is its turn.

        Cancelling the caller while it waits gives up its place; once the work runs, it runs to its
        end, unobserved, and only then is the thread free for the next.

        Args:
            order: Place of the request; the lowest goes first.
            work: What to run.
            before: Called in the event loop just before the work starts; may raise to call it off.
        """
        await self._acquire(order)
        try:
            before()
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except BaseException:
            self._release()
            raise
        try:
            return await asyncio.shield(future)
        finally:
            if future.done():
                # A moment later, so that this request can first ask for its next stage.
                asyncio.get_running_loop().call_soon(self._release)
            else:
                future.add_done_callback(self._release_unobserved)

    async def close(self) -> None:
        """Waits for the work that is running and ends the threads."""
        await asyncio.to_thread(self._pool.shutdown)

    async def _acquire(self, order: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._ticket), turn))
        try:
            await turn
        except asyncio.CancelledError:
            # The turn may have come in the same moment; then it goes to the next in line.
            if not turn.cancelled():
                self._release()
            raise

    def _release_unobserved(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # Nobody is left to see it; unasked, asyncio would print it.
        self._release()

    def _release(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


def lanes_for(device: str) -> Mapping[str, Lane]:
    """Says where each of the pipeline's stages runs; `device` is where the networks are.

    The networks take turns. On CUDA the splats have a lane beside them: they launch hundreds of
    small kernels and wait for many of them, which leaves the GPU idle if it has nothing else.
    """
    gpu, cpu = Lane("gpu", 1), Lane("cpu", _CPU_WORKERS)
    splats = Lane("splats", 1, prepare=partial(_go_first, device)) if "cuda" in device else gpu
    return {
        "text_to_image": gpu,
        "background": cpu,
        "scene_code": gpu,
        "splats": splats,
        "encode": cpu,
    }


def _go_first(device: str) -> None:
    # Loads torch, which a program that only reads settings can do without.
    from generation.acceleration.streams import go_first

    go_first(device)
