"""A client that leaves cancels its work. A real uvicorn, real sockets."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from miner.transports.body_limit import BodyLimit, Message
from miner.transports.connections import ClientConnections, while_connected
from scripts.free_port import free_port

LIMIT_S = 0.1
"""Within which the work must have been cancelled."""


class Handler:
    """Reads the body and works until it is released or cancelled."""

    def __init__(self, *, behind_middleware: bool) -> None:
        self.bodies: list[bytes] = []
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled_at: float | None = None
        self.cancelled = asyncio.Event()
        self.raised: list[BaseException] = []
        self.app = Starlette(routes=[Route("/", self.answer, methods=["POST"])])
        if behind_middleware:
            self.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass_on)
        self.app.add_middleware(
            BodyLimit, max_bytes=2**22, time_limit_s=5.0, on_refusal=lambda refusal: None
        )
        self.app.add_middleware(ClientConnections)

    async def answer(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        try:
            return PlainTextResponse(await while_connected(self.work()))
        except ClientDisconnect as error:
            self.raised.append(error)
            raise

    async def work(self) -> str:
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled_at = time.monotonic()
            self.cancelled.set()
            raise
        return "done"


async def _pass_on(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    return await call_next(request)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[int]:
    port = free_port()
    config = uvicorn.Config(
        app, port=port, log_config=None, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # Without its signal handlers.
    async with asyncio.timeout(5.0):
        while not server.started:
            await asyncio.sleep(0)
            assert not task.done()
    try:
        yield port
    finally:
        server.should_exit = True
        await task


@pytest.fixture(params=[False, True], ids=["plain", "behind BaseHTTPMiddleware"])
def handler(request: pytest.FixtureRequest) -> Handler:
    return Handler(behind_middleware=request.param)


async def post(port: int, body: bytes = b"x") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await ask(writer, body)
    return reader, writer


async def ask(writer: asyncio.StreamWriter, body: bytes) -> None:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    return await reader.readexactly(4)


async def test_a_client_that_closes_cancels_the_work_within_100_ms(handler: Handler) -> None:
    async with serving(handler.app) as port:
        _, writer = await post(port)
        await handler.started.wait()
        left_at = time.monotonic()
        writer.close()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)
        assert handler.cancelled_at is not None
        assert handler.cancelled_at - left_at < LIMIT_S
    assert len(handler.raised) == 1


async def test_a_client_that_resets_the_connection_cancels_the_work(handler: Handler) -> None:
    async with serving(handler.app) as port:
        _, writer = await post(port)
        await handler.started.wait()
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)


async def test_a_client_that_half_closes_counts_as_gone(handler: Handler) -> None:
    """Documents uvicorn: at the end of the client's stream it closes the connection."""
    async with serving(handler.app) as port:
        reader, writer = await post(port)
        await handler.started.wait()
        writer.write_eof()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)
        assert await reader.read() == b""
        writer.close()


async def test_a_client_that_stays_gets_its_answer(handler: Handler) -> None:
    body = b"y" * 3_000_000
    async with serving(handler.app) as port:
        reader, writer = await post(port, body)
        await handler.started.wait()
        handler.release.set()
        assert await answer_of(reader) == b"done"
        writer.close()
    assert handler.bodies == [body]
    assert not handler.cancelled.is_set()


async def test_a_connection_that_is_kept_alive_serves_one_request_after_the_other(
    handler: Handler,
) -> None:
    handler.release.set()
    async with serving(handler.app) as port:
        reader, writer = await post(port, b"0")
        assert await answer_of(reader) == b"done"
        for number in range(1, 4):
            await ask(writer, b"%d" % number)
            assert await answer_of(reader) == b"done"
        handler.release.clear()
        handler.started.clear()
        await ask(writer, b"4")
        await handler.started.wait()
        writer.close()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)
    assert handler.bodies == [b"0", b"1", b"2", b"3", b"4"]


async def test_one_client_that_leaves_takes_no_other_with_it(handler: Handler) -> None:
    async with serving(handler.app) as port:
        _, leaving = await post(port)
        await handler.started.wait()
        handler.started.clear()
        reader, staying = await post(port)
        await handler.started.wait()
        leaving.close()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)
        handler.release.set()
        assert await answer_of(reader) == b"done"
        staying.close()


async def test_a_client_that_leaves_before_the_work_begins_cancels_it(handler: Handler) -> None:
    read, go_on = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        await request.body()
        read.set()
        await go_on.wait()
        return PlainTextResponse(await while_connected(handler.work()))

    handler.app.router.routes[0] = Route("/", answer, methods=["POST"])
    async with serving(handler.app) as port:
        _, writer = await post(port)
        await read.wait()
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.wait_for(handler.cancelled.wait(), 2.0)


# Without a server: what happens in the same moment.


async def connected(
    work: Awaitable[Any], *messages: Message, hold: asyncio.Event | None = None
) -> Any:
    """Runs `while_connected` for a client that sends these messages, then none."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await (hold or asyncio.Event()).wait()
        return left.pop(0)

    async def app(scope: Message, receive: Any, send: Any) -> None:
        results.append(await while_connected(work))

    async def send(message: Message) -> None:
        raise AssertionError("nothing is sent")

    results: list[Any] = []
    await ClientConnections(app)({"type": "http"}, receive, send)
    return results[0]


DISCONNECT: Message = {"type": "http.disconnect"}


async def test_a_result_that_comes_with_the_disconnect_is_returned() -> None:
    done = asyncio.get_running_loop().create_future()
    done.set_result(7)
    assert await connected(done, DISCONNECT) == 7


async def test_a_message_that_is_no_disconnect_cancels_nothing() -> None:
    work = asyncio.sleep(0.01, "done")
    assert await connected(work, {"type": "http.request", "body": b""}) == "done"


async def test_work_that_answers_its_cancellation_has_that_answer_returned() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "given up"
        raise AssertionError("unreachable")

    assert await connected(stubborn(), DISCONNECT) == "given up"


async def test_an_error_of_the_work_comes_through() -> None:
    async def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await connected(fails())


async def test_work_that_others_cancel_is_no_disconnect() -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connected(cancelled)


async def test_cancelling_the_handler_cancels_the_work() -> None:
    work: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    handler = asyncio.create_task(connected(work))
    await asyncio.sleep(0.001)
    handler.cancel()
    with pytest.raises(asyncio.CancelledError):
        await handler
    assert work.cancelled()


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    assert await connected(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ClientDisconnect):
        await connected(asyncio.Event().wait(), DISCONNECT)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
