"""HTTP as strangers speak it: damaged, large, pipelined, upgraded. A real uvicorn."""

import asyncio
import json
import socket
import time
from pathlib import Path

import pytest

from tests.support.limited_running import HEALTH, serving
from tests.support.loopback import RawClient


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
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        await client.send(HEALTH[:-2] + b"A: " + b"a" * size)
        await asyncio.sleep(0.05)
        assert (await client.ask(b"\r\n\r\n")).status == 200
        client.close()


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large_gets_its_answer_though_it_is_still_sent(
    tmp_path: Path, declared: bool
) -> None:
    async with serving(tmp_path) as server:
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


async def test_an_answer_that_fails_half_way_is_cut_off_and_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as server:
        client = RawClient(server.port)
        await client.send(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not (await client.closed()).endswith(b"0\r\n\r\n")
        client.close()
        await server.until_open(0)
        assert server.counts == {"server_error": 1}
    assert caplog.records == []  # uvicorn has nothing to add.
