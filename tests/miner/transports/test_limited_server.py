"""Strangers on real sockets: silent, slow, too many. A real uvicorn, short limits."""

import asyncio
import contextlib
import gc
import itertools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from miner.transports.limited_server import _Connection
from tests.support.fakes import Clock
from tests.support.limited_running import HEALTH, LIMITS, PATIENT, serving
from tests.support.loop_lag import Stopwatch
from tests.support.loopback import RawClient, open_descriptors
from tests.support.waiting import PATIENCE_S, until


async def test_silent_connections_are_closed_in_time_counted_and_logged(
    tmp_path: Path, warnings: list[str]
) -> None:
    gc.collect()
    earlier = {id(each) for each in gc.get_objects() if type(each) is _Connection}
    before = open_descriptors()
    async with serving(tmp_path, LIMITS) as server:
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
    assert {id(each) for each in gc.get_objects() if type(each) is _Connection} <= earlier
    assert open_descriptors() <= before


SILENT = """
import socket, sys
port, count = map(int, sys.argv[1:])
held = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
print("open", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("count", [600, 5000])
async def test_so_many_silent_connections_keep_nobody_out(tmp_path: Path, count: int) -> None:
    async with serving(tmp_path, replace(PATIENT, waiting=1024, waiting_per_address=256)) as server:
        # In another process: a thread could hold the interpreter while it has no core.
        opening = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SILENT, str(server.port), str(count)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert opening.stdout is not None
        opened = asyncio.create_task(opening.stdout.readline())
        slowest = 0.0
        try:
            for number in itertools.count():
                watch = Stopwatch()
                assert (await server.honest()).status == 200
                slowest = max(slowest, watch.seconds)
                if opened.done() and number > 20:
                    break
            assert await opened == b"open\n"
            await until(lambda: server.counts.get("too_many_connections", 0) >= count - 256)
            assert (await server.honest()).status == 200
        finally:
            await opening.communicate(b"")  # Its input ends, and so does it.
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
    async with serving(tmp_path) as server:
        clients = []
        for number in range(60):
            clients.append(RawClient(server.port))
            if start:
                await clients[-1].send(start)
            if number % 5 == 0:
                assert (await server.honest()).status == 200
                assert (await server.honest(source="127.0.0.2")).status == 200
        await until(lambda: server.counts["too_many_connections"] >= 40)
        assert len(server.server.book) == 20
        for client in clients:
            client.close()
        await server.until_open(0)


@pytest.mark.parametrize("start", SLOW_STARTS.values(), ids=SLOW_STARTS)
async def test_whatever_a_client_stops_at_its_time_is_limited(tmp_path: Path, start: bytes) -> None:
    async with serving(tmp_path, LIMITS) as server:
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


async def test_uploads_that_break_off_together_take_no_place_of_a_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        clients = [RawClient(server.port) for _ in range(15)]
        for client in clients:
            await client.send(SLOW_STARTS["half a body"])
        await server.until_tasks(15)
        for client in clients:
            client.close()
        while len(server.server.book):
            assert server.server.book.has_place("another", "192.0.2.1")
            await asyncio.sleep(0)


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "after an answer"])
async def test_headers_that_drip_are_given_up(tmp_path: Path, before: bytes) -> None:
    async with serving(tmp_path, LIMITS) as server:
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
    async with serving(tmp_path, LIMITS) as server:
        clock = Clock()
        server.server.book._clock = clock
        client = RawClient(server.port)
        for _ in range(5):
            assert (await client.ask(HEALTH)).status == 200
            clock.now += LIMITS.idle_s / 3
            await asyncio.sleep(LIMITS.idle_s / 3)  # The server looks several times.
        clock.now += LIMITS.idle_s
        assert await client.closed() == b""
        client.close()
        assert server.counts == {}


async def test_a_client_that_does_not_read_its_answer_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, LIMITS) as server:
        clients = [RawClient(server.port, receive_buffer=4096) for _ in range(3)]
        for client in clients:
            await client.send(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server.ended == 3)
        assert (await server.honest()).status == 200  # They hold no place of a request.
        await server.until_open(0)
        assert server.counts == {"slow_reader": 3}
        await server.until_tasks(0)
        for client in clients:
            client.close()


async def test_a_client_that_sends_requests_and_reads_no_answer_is_given_up(tmp_path: Path) -> None:
    async with serving(tmp_path, LIMITS) as server:
        client = RawClient(server.port, receive_buffer=4096)
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await client.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        await server.until_open(0)
        assert server.counts == {"slow_reader": 1}
        client.close()


async def test_requests_beyond_the_bound_are_told_so_and_later_ones_are_served(
    tmp_path: Path,
) -> None:
    hold = b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving(tmp_path) as server:
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


async def test_a_server_that_closes_does_not_wait_for_silent_or_slow_clients(
    tmp_path: Path,
) -> None:
    before = open_descriptors()
    async with serving(tmp_path) as server:
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
