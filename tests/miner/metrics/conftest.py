"""One miner with traffic for all tests of its metrics."""

import asyncio
from types import SimpleNamespace

import pytest

from miner.metrics import opening
from tests.support.measured_miner import exposed, fake_gpu


@pytest.fixture(scope="session")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """What it exposes: `text`, and `openmetrics`. Its GPU is a stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "GpuMemory", fake_gpu)
        return asyncio.run(exposed(tmp_path_factory.mktemp("exposed")))
