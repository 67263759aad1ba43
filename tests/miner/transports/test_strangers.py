"""Strangers at both real transports: silent connections, upgrades, malformed bytes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from miner.transports.connection_book import ConnectionLimits
from tests.support import http_running
from tests.support.loopback import RawClient, open_descriptors, silent_connections
from tests.support.running import Start
from tests.support.waiting import PATIENCE_S

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

LIMITS = ConnectionLimits(waiting=400, waiting_per_address=300, head_s=1.0)


@dataclass
class Served:
    """A transport that serves, and a caller that it should answer."""

    port: int
    honest: Callable[[], Awaitable[bool]]
    events: Callable[..., list[dict[str, Any]]]
    path: str


Serve = Callable[[], AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["http", "axon"])
def serve(request: pytest.FixtureRequest, tmp_path: Path, start: Start) -> Serve:
    @asynccontextmanager
    async def http() -> AsyncIterator[Served]:
        async with http_running.running(tmp_path, connection_limits=LIMITS) as miner:

            async def honest() -> bool:
                health = await miner.ask("GET", "/health")
                made = await miner.post(data={"prompt": "a blue cube"})
                return (health.status, made.status) == (200, 200)

            yield Served(miner.port, honest, miner.events, "/health")

    @asynccontextmanager
    async def axon() -> AsyncIterator[Served]:
        async with start(connection_limits=LIMITS) as miner:

            async def honest() -> bool:
                return bool((await miner.ask()).outcome == "completed")

            yield Served(miner.target.port, honest, miner.events, "/GenerateAsset")

    return http if request.param == "http" else axon


async def test_600_silent_connections_shut_nobody_out_and_are_counted(serve: Serve) -> None:
    warnings: list[str] = []
    sink = logger.add(warnings.append, level="WARNING", format="{message}")
    before = open_descriptors()
    async with serve() as served:
        assert await served.honest()
        with await asyncio.to_thread(lambda: silent_connections(served.port, 600)) as held:
            for _ in range(5):
                assert await served.honest()
                await asyncio.sleep(LIMITS.head_s / 3)
            # All are closed by now; one more gives their codes their first lines.
            for connection in held:
                connection.settimeout(PATIENCE_S)
                assert await asyncio.to_thread(connection.recv, 1) == b""
            assert await served.honest()
    logger.remove(sink)
    counts = {"too_many_connections": 0, "idle_connection": 0}
    for line in served.events("refused"):
        counts[line["reason_code"]] += line["count"]
    assert sum(counts.values()) == 600
    assert 300 <= counts["too_many_connections"] <= 310
    for code in counts:
        assert any(code in text for text in warnings)
    assert open_descriptors() <= before


async def test_an_upgrade_is_answered_at_once(serve: Serve) -> None:
    async with serve() as served:
        for upgrade in ("websocket", "h2c"):
            client = RawClient(served.port)
            reply = await client.ask(
                f"GET {served.path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n"
                f"Upgrade: {upgrade}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
                1.0,
            )
            assert reply.status < 500
            assert json.loads(reply.body)
            client.close()
        assert await served.honest()


async def test_bytes_that_are_not_http_are_answered_400_in_json(serve: Serve) -> None:
    async with serve() as served:
        for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
            client = RawClient(served.port)
            reply = await client.ask(data)
            assert (reply.status, reply.message) == (400, "this is not a valid HTTP/1.1 request")
            client.close()
        assert await served.honest()
    lines = served.events("refused")
    assert {line["reason_code"] for line in lines} == {"bad_http"}
    assert sum(line["count"] for line in lines) == 3
