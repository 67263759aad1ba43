"""What a handler learns about its client's connection, behind any ASGI server.

A client that disconnects cancels its work. uvicorn treats the end of a client's stream as the end
of the connection: a client that half-closes (`shutdown(SHUT_WR)`) after its request counts as gone
and gets no answer, as with plain uvicorn. TCP offers no other way to notice that a client has left
before an answer is written to it.

While a second, pipelined request waits on a connection, uvicorn stops reading from it, and so
notices a disconnect only when it writes the first answer.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect

from miner.transports.body_limit import App, Message, Receive, Send

T = TypeVar("T")


class _Connection:
    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.on_sent: Callable[[], object] | None = None


_connection: ContextVar[_Connection] = ContextVar("connection")


class ClientConnections:
    """ASGI middleware that lets handlers use the functions below; it must be the outermost one.

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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = _Connection(receive)
        _connection.set(connection)

        async def send_and_wait(message: Message) -> None:
            last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if last and message.get("body"):
                # uvicorn waits for a full buffer only before it sends what comes next.
                await send({**message, "more_body": True})
                message = {"type": "http.response.body", "body": b""}
            await send(message)
            if last and connection.on_sent is not None:
                connection.on_sent()

        await self._app(scope, receive, send_and_wait)


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
    leaving = asyncio.create_task(_disconnect(_connection.get().receive))
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


def when_sent(callback: Callable[[], object]) -> None:
    """Calls back once the operating system has taken the answer to this request.

    All but the last 64 KiB at most, which the server may still hold.

    Raises:
        LookupError: The request did not come through `ClientConnections`.
    """
    _connection.get().on_sent = callback


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
