"""A caller that leaves the axon or the HTTP transport cancels its request in the service."""

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miner.entry import Watch
from miner.request import Answer, Request
from tests.support import http_running
from tests.support.running import Start

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

LIMIT_S = 0.1


class HeldService:
    """Stands in for `handle`: keeps every request until it is released or cancelled."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.entered = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.cancelled_at = 0.0
        self.loop = asyncio.get_running_loop()

    async def __call__(self, request: Request, *, watch: Watch | None = None) -> Answer:
        assert asyncio.get_running_loop() is self.loop
        self.requests.append(request)
        self.entered.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled_at = time.monotonic()
            self.cancelled.set()
            raise
        return Answer("failed", "internal_error", "never mind", request.task.id)


async def leave(held: HeldService, url: str, **arguments: Any) -> None:
    """Posts, closes the connection while the request is in the service, and checks the delay."""
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(url, **arguments).__aenter__())
        await asyncio.wait_for(held.entered.wait(), 5.0)
        await asyncio.sleep(0.02)  # The request is at rest: nothing but the disconnect moves it.
        assert not held.cancelled.is_set()
        left_at = time.monotonic()
        asking.cancel()
        await asyncio.wait({asking})
    await asyncio.wait_for(held.cancelled.wait(), 5.0)
    assert held.cancelled_at - left_at < LIMIT_S


async def test_a_caller_that_leaves_the_axon_cancels_its_request(start: Start) -> None:
    async with start() as miner:
        handle, held = miner.service.handle, HeldService()
        miner.service.handle = held
        headers, body = miner.signed()
        await leave(held, f"{miner.url}/GenerateAsset", headers=headers, json=body)
        assert held.requests[0].transport == "axon"
        miner.service.handle = handle
        assert (await miner.ask()).outcome == "completed"


async def test_a_caller_that_leaves_the_http_transport_cancels_its_request(tmp_path: Path) -> None:
    async with http_running.running(tmp_path) as miner:
        handle, held = miner.service.handle, HeldService()
        miner.service.handle = held  # type: ignore[method-assign]
        await leave(held, f"{miner.transport.url}/generate/", data={"prompt": "a blue cube"})
        assert held.requests[0].transport == "http"
        miner.service.handle = handle  # type: ignore[method-assign]
        assert (await miner.post(data={"prompt": "a blue cube"})).status == 200


async def test_an_axon_that_closes_for_good_cancels_what_it_cannot_wait_for(start: Start) -> None:
    async with start() as miner:
        held = HeldService()
        miner.service.handle = held
        miner.transport.axon.fast_config.timeout_graceful_shutdown = 0.05
        asking = asyncio.create_task(miner.post(*miner.signed()))
        await asyncio.wait_for(held.entered.wait(), 5.0)
        await miner.transport.close()
        await asyncio.wait_for(held.cancelled.wait(), 5.0)
        await asyncio.wait({asking})
        asking.exception()


async def test_a_caller_that_leaves_frees_its_place_and_is_logged_once(tmp_path: Path) -> None:
    async with http_running.running(tmp_path) as miner:
        miner.engine.hold_at = "denoise"
        async with aiohttp.ClientSession() as session:
            url = f"{miner.transport.url}/generate"
            asking = asyncio.create_task(
                session.post(url, data={"prompt": "a blue cube"}).__aenter__()
            )
            await asyncio.wait_for(miner.engine.holding.wait(), 5.0)
            assert miner.service.active(except_transport="axon") == 1
            asking.cancel()
            await asyncio.wait({asking})
        for _ in range(2000):
            if answered := miner.events("answered"):
                break
            await asyncio.sleep(0.001)
        assert miner.service.active(except_transport="axon") == 0
        miner.engine.release.set()
        assert (await miner.post(data={"prompt": "a red cube"})).status == 200
    assert [(line["outcome"], line["reason_code"]) for line in answered] == [
        ("dropped", "caller_left")
    ]
    assert len(miner.events("answered")) == 2
    assert [stage for _, stage in miner.engine.ran].count("encode") == 1
