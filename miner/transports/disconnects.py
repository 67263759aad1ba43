"""Cancels the work for a client that has closed its connection, behind any ASGI server.

uvicorn treats the end of a client's stream as the end of the connection: a client that half-closes
(`shutdown(SHUT_WR)`) after its request counts as gone and gets no answer, as with plain uvicorn.
TCP offers no other way to notice that a client has left before an answer is written to it.

While a second, pipelined request waits on a connection, uvicorn stops reading from it and so
notices a disconnect only when it writes the first answer.
"""

import asyncio
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from miner.transports.body_limit import App, Message, Receive, Send

T = TypeVar("T")

_receive: ContextVar[Receive] = ContextVar("receive")


class ClientConnections:
    """ASGI middleware that lets handlers call `while_connected`; it must be the outermost one.

    It hands the server's own `receive` to the handler, past middleware that keeps it to itself
    (Starlette's BaseHTTPMiddleware, on which Bittensor's axon is built). It reads and buffers
    nothing.

    Args:
        app: The application behind.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks for it."""
        if scope["type"] == "http":
            _receive.set(receive)
        await self._app(scope, receive, send)


async def while_connected(work: Awaitable[T]) -> T:
    """Awaits work in a handler, and cancels it once the client has closed the connection.

    Args:
        work: A coroutine or a future. Cancelling the caller cancels it too.

    Returns:
        The result of the work, also where it came together with the disconnect.

    Raises:
        starlette.requests.ClientDisconnect: The client left, and the work has been cancelled.
        Exception: Whatever the work raised.
        LookupError: The request did not come through `ClientConnections`.
    """
    # The body must have been read: what is left of it would be dropped here.
    leaving = asyncio.create_task(_disconnect(_receive.get()))
    task = asyncio.ensure_future(work)
    waiting: set[asyncio.Future[Any]] = {task, leaving}
    left = False
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        left = not task.done()
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if left and task.cancelled():
        raise ClientDisconnect
    return task.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
