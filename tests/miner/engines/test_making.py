"""Making the engines that the settings ask for."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from generation.presets import preset
from miner.engines import ray_engine
from miner.engines.calls import Calls
from miner.engines.making import make_engines
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError
from tests.support.waiting import until


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


async def test_what_rays_process_has_started_ends_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ray's agents would notice the end of the others only after up to a minute."""
    numbers = tmp_path / "numbers"
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nsleep 600 &\necho $! >{numbers}.new\nmv {numbers}.new {numbers}\nwait\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    making = asyncio.create_task(
        make_engines(EnginesSettings(kind="ray", count=1), preset("embedded"), None)
    )
    await until(numbers.exists)
    making.cancel()
    await asyncio.wait({making})
    below = Path(f"/proc/{numbers.read_text().strip()}/stat")
    await until(lambda: not below.exists() or ") Z " in below.read_text())


async def test_ray_that_does_not_answer_is_a_reason_not_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_engine, "PLACED_S", 0.1)
    monkeypatch.setattr(ray_engine, "ANSWER_LIMIT_S", 0.1)
    here, there = socket.socketpair()
    process = ray_engine.RayProcess(EnginesSettings(kind="ray"))
    process._calls = Calls(here, "Ray's process")
    monkeypatch.setattr(process, "open", AsyncMock())
    with there, pytest.raises(SetupError, match="engine 3 was not placed: Ray's process does not"):
        await process.opener(preset("embedded"), 3)()
    process.close()


@pytest.mark.parametrize(("address", "fix"), [(None, "/tmp/ray"), ("auto", "`ray start --head`")])
async def test_ray_that_ends_while_it_starts_is_a_reason_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, address: str | None, fix: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    engines = EnginesSettings(kind="ray", count=1, address=address)
    with pytest.raises(SetupError, match="Ray does not start: Ray's process ended") as refused:
        await make_engines(engines, preset("embedded"), None)
    assert fix in refused.value.fix
