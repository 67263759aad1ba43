"""What several tests of the mock validator ask: a miner's axon on loopback."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from miner.transports.pull.dendrite import offline_dendrite
from tests.support.running import VALIDATOR, Running

KNOWN = ("red", "blue", "car", "cube")
"""Words that the networks of the miner know."""


@pytest.fixture
async def miner(tmp_path: Path) -> AsyncIterator[Running]:
    async with offline_dendrite(VALIDATOR) as dendrite:
        running = Running(tmp_path / "logs", dendrite, vocabulary=KNOWN)
        await running.service.start()
        await running.transport.serve()
        try:
            yield running
        finally:
            await running.service.drain()
            await running.transport.close()
            running.log.close()
