"""asyncio tasks that outlive the code that starts them, and cancellations that nobody asked for."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

from loguru import logger

T = TypeVar("T")

Group = set["asyncio.Task[Any]"]
"""Tasks that run; each leaves the group when it ends."""


def spawn(work: Coroutine[Any, Any, T], group: Group) -> "asyncio.Task[T]":
    """Starts a task in a group. An error that ends it is logged."""
    task = asyncio.create_task(work)
    group.add(task)

    def on_end(ended: "asyncio.Task[T]") -> None:
        group.discard(ended)
        if not ended.cancelled() and (error := ended.exception()) is not None:
            logger.opt(exception=error).error("a background task failed")

    task.add_done_callback(on_end)
    return task


async def cancel(group: Group) -> None:
    """Cancels the tasks of a group and waits until they have ended."""
    for task in group:
        task.cancel()
    if group:
        await asyncio.wait(group)


async def contained(work: Awaitable[T]) -> T:
    """Awaits work whose own cancellation must not end the task that waits for it.

    Raises:
        RuntimeError: The work was cancelled, and the task that calls this was not.
        Exception: Whatever the work raised.
    """
    try:
        return await work
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the work was cancelled") from None
