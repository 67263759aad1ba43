"""A running miner for the tests that ask one, and a pulling one that asks fake validators."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loguru import logger

from miner.transports.pull import delivery, puller
from miner.transports.pull.dendrite import offline_dendrite
from tests.support.fake_validators import Pulling, StartPulling, Time
from tests.support.running import VALIDATOR, Running, Start


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What the program's log is warned of."""
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING", format="{message}")
    yield lines
    logger.remove(sink)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    def no_internet() -> str:
        raise AssertionError("the internet was asked for our address")

    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", no_internet)

    @asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[Running]:
        async with offline_dendrite(VALIDATOR) as dendrite:
            miner = Running(tmp_path, dendrite, **settings)
            try:
                await miner.service.start()
                await miner.transport.serve()
                yield miner
            finally:
                miner.engine.release.set()
                await miner.service.drain()
                await miner.transport.close()
                miner.log.close()

    return running


@pytest.fixture
async def miner(start: Start) -> AsyncIterator[Running]:
    async with start() as running:
        yield running


@pytest.fixture
def start_pulling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StartPulling:
    time = Time()
    patched = SimpleNamespace(**vars(asyncio))
    patched.sleep = time.sleep
    monkeypatch.setattr(puller, "asyncio", patched)
    monkeypatch.setattr(delivery, "asyncio", patched)

    @asynccontextmanager
    async def running(
        prepare: Callable[[Pulling], None] = lambda pulling: None, **settings: Any
    ) -> AsyncIterator[Pulling]:
        pulling = Pulling(tmp_path, time, **settings)
        prepare(pulling)
        pulling.transport = pulling.make()
        await pulling.service.start()
        await pulling.transport.serve()
        try:
            yield pulling
        finally:
            await pulling.transport.close()
            pulling.log.close()

    return running
