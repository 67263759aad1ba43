"""Strangers on real sockets: silent, slow, malformed, too many. A real uvicorn, short limits."""

import asyncio
import contextlib
import gc
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from loguru import logger
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from miner.score.log import ScoreLog
from miner.transports.body_limit import BodyLimit
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections
from miner.transports.failures import ServerErrors
from miner.transports.limited_server import LimitedServer, _Connection
from miner.transports.refusals import RefusalLog
from miner.transports.sockets import bound_socket
from tests.support.loopback import (
    RawClient,
    RawReply,
    free_port,
    open_descriptors,
    silent_connections,
)

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = ConnectionLimits(
    waiting=40, waiting_per_address=20, requests=4, requests_per_address=3,
    head_s=0.3, body_s=0.6, write_s=0.4, idle_s=0.3, drain_s=0.3,
)  # fmt: skip
BODY_LIMIT_S = 0.3
PATIENT = replace(LIMITS, head_s=30.0, body_s=30.0, write_s=30.0, idle_s=30.0, drain_s=30.0)
LARGE = bytes(20_000_000)


class Server:
    """A server, and what it has refused."""

    def __init__(self, folder: Path, limits: ConnectionLimits) -> None:
        self.port = free_port()
        self.log = ScoreLog(folder)
        self.refusals = RefusalLog(self.log, "http", time.monotonic)
        self.release = asyncio.Event()
        self.ended = 0
        app = Starlette(
            routes=[
                Route("/health", self.health, methods=["GET", "POST"]),
                Route("/echo", self.echo, methods=["POST"]),
                Route("/hold", self.hold),
                Route("/large", self.large),
            ]
        )
        app.add_middleware(
            BodyLimit, max_bytes=2**22, time_limit_s=BODY_LIMIT_S, on_refusal=self.refusals.note
        )
        app.add_middleware(ClientConnections)
        app.add_middleware(ServerErrors, refusals=self.refusals)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = LimitedServer(config, limits, self.refusals)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"size": len(await request.body())})

    async def hold(self, request: Request) -> Response:
        await self.release.wait()
        return JSONResponse({"status": "released"})

    async def large(self, request: Request) -> Response:
        try:
            return Response(LARGE)
        finally:
            self.ended += 1

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.refusals.counts)

    async def honest(self, **options: Any) -> RawReply:
        """What somebody gets who connects and asks at once."""
        client = RawClient(self.port, **options)
        try:
            return await client.ask(HEALTH)
        finally:
            client.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what the server does by itself."""
        async with asyncio.timeout(5.0):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    async def until_open(self, count: int) -> None:
        """Waits until the server knows that many connections."""
        await self.until(lambda: len(self.server.book) == count)

    async def until_tasks(self, count: int) -> None:
        """Waits until that many requests are being answered."""
        await self.until(lambda: len(self.server.server_state.tasks) == count)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


@asynccontextmanager
async def serving(folder: Path, limits: ConnectionLimits = LIMITS) -> AsyncIterator[Server]:
    server = Server(folder, limits)
    bound = bound_socket("127.0.0.1", server.port)
    task = asyncio.create_task(server.server.serve(sockets=[bound]))
    await server.until(lambda: server.server.started)
    try:
        yield server
    finally:
        server.release.set()
        server.server.should_exit = True
        await asyncio.wait_for(task, 10.0)
        bound.close()
        server.log.close()


async def test_silent_connections_are_closed_in_time_counted_and_logged(
    tmp_path: Path, warnings: list[str]
) -> None:
    gc.collect()
    earlier = {id(each) for each in gc.get_objects() if isinstance(each, _Connection)}
    before = open_descriptors()
    async with serving(tmp_path) as server:
        clients = [RawClient(server.port) for _ in range(5)]
        assert (await server.honest()).status == 200
        for client in clients:
            assert await client.closed() == b""
            client.close()
        await server.until_open(0)
        assert server.counts == {"idle_connection": 5}
    (line,) = [json.loads(line) for line in server.log.path.read_text().splitlines()]
    assert (line["event"], line["transport"], line["reason_code"]) == (
        "refused",
        "http",
        "idle_connection",
    )
    assert ["idle_connection" in text for text in warnings] == [True]
    del client, clients, server
    gc.collect()
    assert {id(each) for each in gc.get_objects() if isinstance(each, _Connection)} <= earlier
    assert open_descriptors() <= before


@pytest.mark.parametrize("count", [600, 5000])
async def test_so_many_silent_connections_keep_nobody_out(tmp_path: Path, count: int) -> None:
    async with serving(tmp_path, replace(PATIENT, waiting=1024, waiting_per_address=256)) as server:
        held = silent_connections(server.port, count)
        opening = asyncio.create_task(asyncio.to_thread(held.__enter__))
        slowest = 0.0
        try:
            for number in range(1000):
                started = time.monotonic()
                assert (await server.honest()).status == 200
                slowest = max(slowest, time.monotonic() - started)
                if opening.done() and number > 20:
                    break
            await server.until(lambda: server.counts.get("too_many_connections", 0) >= count - 256)
            assert (await server.honest()).status == 200
        finally:
            await opening
            held.__exit__(None, None, None)
        await server.until_open(0)
        assert slowest < 1.0
        # The honest caller has had a place for a moment.
        assert count - 256 <= server.counts["too_many_connections"] <= count - 250


SLOW_STARTS = {
    "nothing": b"",
    "half a line": b"GET /he",
    "half a head": b"GET /health HTTP/1.1\r\nHost: x\r\n",
    "a head without its body": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    "half a body": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n1234",
    "half a chunk": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n12",
    "a body that nobody reads": b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    "a whole request": HEALTH,
}


@pytest.mark.parametrize("start", SLOW_STARTS.values(), ids=SLOW_STARTS)
async def test_whatever_a_client_stops_at_others_get_in(tmp_path: Path, start: bytes) -> None:
    async with serving(tmp_path, PATIENT) as server:
        clients = []
        for number in range(60):
            clients.append(RawClient(server.port))
            if start:
                await clients[-1].send(start)
            if number % 5 == 0:
                assert (await server.honest()).status == 200
                assert (await server.honest(source="127.0.0.2")).status == 200
        await server.until(lambda: server.counts["too_many_connections"] >= 40)
        assert len(server.server.book) == 20
        for client in clients:
            client.close()
        await server.until_open(0)


@pytest.mark.parametrize("start", SLOW_STARTS.values(), ids=SLOW_STARTS)
async def test_whatever_a_client_stops_at_its_time_is_limited(tmp_path: Path, start: bytes) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        await client.send(start)
        received = await client.closed(3.0)
        await server.until_open(0)
        client.close()
        if start.startswith((HEALTH, b"POST /health")):
            assert received.startswith(b"HTTP/1.1 200")
        elif start:
            assert received.startswith(b"HTTP/1.1 408")
            assert b"did not arrive" in received
            assert b'"reason_code":"slow_' in received
        expected: dict[bytes, dict[str, int]] = {b"": {"idle_connection": 1}, HEALTH: {}}
        code = "slow_headers" if b"\r\n\r\n" not in start else "slow_body"
        assert server.counts.keys() == expected.get(start, {code: 1}).keys()


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "after an answer"])
async def test_headers_that_drip_are_given_up(tmp_path: Path, before: bytes) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        if before:
            assert (await client.ask(before)).status == 200
        started = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in HEALTH * 10:
                await client.send(bytes([byte]))
                await asyncio.sleep(0.04)
                if len(server.server.book) == 0:
                    break
        assert time.monotonic() - started < 2.0
        assert server.counts == {"slow_headers": 1}
        client.close()


async def test_a_kept_connection_serves_prompt_requests_and_ends_without_a_refusal(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        for _ in range(4):
            assert (await client.ask(HEALTH)).status == 200
            await asyncio.sleep(LIMITS.idle_s / 3)
        assert await client.closed() == b""
        client.close()
        assert server.counts == {}


async def test_a_client_that_does_not_read_its_answer_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        clients = [RawClient(server.port, receive_buffer=4096) for _ in range(3)]
        for client in clients:
            await client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.until(lambda: server.ended == 3)
        assert (await server.honest()).status == 200  # They hold no place of a request.
        await server.until_open(0)
        assert server.counts == {"slow_reader": 3}
        assert not server.server.server_state.tasks
        for client in clients:
            client.close()


async def test_a_client_that_sends_requests_and_reads_no_answer_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port, receive_buffer=4096)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10.0):
                while True:
                    await client.send(HEALTH * 100)
        await server.until_open(0)
        assert server.counts == {"slow_reader": 1}
        client.close()


async def test_pipelined_requests_are_answered_in_turn(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        echo = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
        await client.send(HEALTH + echo + HEALTH)
        replies = [(await client.reply()).body for _ in range(3)]
        assert replies == [b'{"status":"healthy"}', b'{"size":3}', b'{"status":"healthy"}']
        client.close()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # A TLS hello.
        (b"hello\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),  # Without a host.
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        # Of two lengths, a proxy in front may take the other.
        (
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n"
            b"\r\n0\r\n\r\n",
            400,
        ),
        (b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 100_000 + b"\r\n", 431),
        (b"a" * 1_000_000, 431),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else str(value),
)
async def test_what_is_not_http_is_answered_in_json_and_logged_once(
    tmp_path: Path,
    data: bytes,
    status: int,
    warnings: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(tmp_path) as server:
        for _ in range(3):
            client = RawClient(server.port)
            await client.send(data)  # All of it is taken, so that the answer is read.
            reply = await client.reply()
            assert reply.status == status
            assert reply.message
            assert json.loads(reply.body)["reason_code"] == "bad_http"
            await client.closed()
            client.close()
        assert server.counts == {"bad_http": 3}
        assert (await server.honest()).status == 200
        assert len(warnings) == 1
    assert caplog.records == []


@pytest.mark.parametrize("size", [15_000, 60_000])
async def test_headers_within_the_limit_are_taken_in_pieces_too(tmp_path: Path, size: int) -> None:
    async with serving(tmp_path, PATIENT) as server:
        client = RawClient(server.port)
        await client.send(HEALTH[:-2] + b"A: " + b"a" * size)
        await asyncio.sleep(0.05)
        assert (await client.ask(b"\r\n\r\n")).status == 200
        client.close()


async def test_requests_beyond_the_bound_are_told_so_and_later_ones_are_served(
    tmp_path: Path,
) -> None:
    hold = b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(tmp_path, PATIENT) as server:
        clients = [RawClient(server.port) for _ in range(3)]
        for client in clients:
            await client.send(hold)
        await server.until_tasks(3)
        refused = await server.honest()
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert "too many requests" in refused.message
        clients.append(RawClient(server.port, source="127.0.0.2"))
        assert (await clients[-1].ask(HEALTH)).status == 200  # The bound was one address'.
        await clients[-1].send(hold)
        await server.until_tasks(4)
        assert (await server.honest(source="127.0.0.3")).status == 503  # This one is for all.
        assert server.counts == {"overloaded": 2}
        server.release.set()
        for client in clients:
            assert (await client.reply()).status == 200
        assert (await server.honest()).status == 200
        for client in clients:
            client.close()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large_gets_its_answer_though_it_is_still_sent(
    tmp_path: Path, declared: bool
) -> None:
    async with serving(tmp_path, PATIENT) as server:
        client = RawClient(server.port)
        size = 12_000_000
        framing = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
        head = f"POST /echo HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n"
        body = (
            bytes(size) if declared else f"{size:x}\r\n".encode() + bytes(size) + b"\r\n0\r\n\r\n"
        )
        assert (await client.ask(head.encode() + body)).status == 413
        assert (await client.ask(HEALTH)).status == 200
        client.close()


@pytest.mark.parametrize(
    "upgrade",
    [
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n",
        b"Upgrade: x\r\n",
        b"",
    ],
)
async def test_an_upgrade_is_answered_as_plain_http(
    tmp_path: Path, upgrade: bytes, warnings: list[str]
) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n" + upgrade + b"\r\n"
        assert (await client.ask(head, 1.0)).status == 200
        assert (await client.ask(HEALTH, 1.0)).status == 200
        client.close()
    assert warnings == []


async def test_small_answers_are_sent_at_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        seconds = []
        for _ in range(20):
            started = time.monotonic()
            assert (await client.ask(HEALTH)).status == 200
            seconds.append(time.monotonic() - started)
        assert sorted(seconds)[10] < 0.02
        (connection,) = server.server.server_state.connections
        accepted = connection.transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        client.close()


async def test_a_server_that_closes_does_not_wait_for_silent_or_slow_clients(
    tmp_path: Path,
) -> None:
    before = open_descriptors()
    async with serving(tmp_path, PATIENT) as server:
        clients = []
        for start in SLOW_STARTS.values():
            clients.append(RawClient(server.port))
            await clients[-1].send(start)
        await server.until_open(len(clients))
        started = time.monotonic()
    assert time.monotonic() - started < 3.0
    for client in clients:
        client.close()
    assert open_descriptors() <= before
