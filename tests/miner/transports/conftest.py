"""A running miner for the tests that ask one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from miner.transports.puller import offline_dendrite
from tests.miner.transports.running import VALIDATOR, Running, Start


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
                miner.generator.release.set()
                await miner.service.drain()
                await miner.transport.close()
                miner.log.close()

    return running


@pytest.fixture
async def miner(start: Start) -> AsyncIterator[Running]:
    async with start() as running:
        yield running
