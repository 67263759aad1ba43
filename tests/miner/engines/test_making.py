"""Making the engines that the settings ask for."""

import asyncio
import subprocess
import sys

import pytest

from generation.presets import preset
from miner.engines import ray_engine
from miner.engines.making import make_engines
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError


async def test_ray_that_is_given_up_while_it_starts_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by SIGTERM."""
    started: list[subprocess.Popen[bytes]] = []
    start = ray_engine._start_process

    def keep() -> object:
        process, connection = start()
        started.append(process)
        return process, connection

    monkeypatch.setattr(ray_engine, "_start_process", keep)
    making = asyncio.create_task(
        make_engines(EnginesSettings(kind="ray", count=1), preset("embedded"), None)
    )
    while not started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    making.cancel()
    await asyncio.wait({making})
    assert making.cancelled()
    assert started[0].returncode is not None


async def test_ray_that_ends_while_it_starts_is_a_reason_with_a_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SetupError, match="Ray does not start: Ray's process ended") as refused:
        await make_engines(EnginesSettings(kind="ray", count=1), preset("embedded"), None)
    assert "/tmp/ray" in refused.value.fix
