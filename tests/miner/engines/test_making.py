"""Making the engines that the settings ask for."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest
from loguru import logger

from generation.presets import preset
from generation.settings import GenerationSettings
from miner.engines import making, ray_engine
from miner.engines.calls import Calls
from miner.engines.making import engine_count, make_engines
from miner.engines.ray_cluster import Resources
from miner.settings.engines import MOST_ENGINES, EnginesSettings
from protocol.errors import SetupError
from tests.support.waiting import until

EMBEDDED, GPU = preset("embedded"), preset("gpu24")
AUTO, JOINED = EnginesSettings(kind="ray"), EnginesSettings(kind="ray", address="auto")


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}", level="INFO")
    yield lines
    logger.remove(sink)


def test_there_is_one_engine_for_each_gpu(lines: list[str]) -> None:
    assert engine_count(AUTO, GPU, Resources({"a": 1}, gpus=1, cores=8)) == 1
    assert engine_count(JOINED, GPU, Resources({"a": 2, "b": 1}, gpus=3, cores=8)) == 3
    assert lines == [
        "INFO Ray has 1 GPU on a; 1 engine\n",
        "INFO Ray has 3 GPUs on a, b; 3 engines\n",
    ]


def test_auto_makes_no_more_engines_than_a_miner_may_have(lines: list[str]) -> None:
    assert engine_count(JOINED, GPU, Resources({"a": 20}, gpus=20, cores=8)) == MOST_ENGINES
    assert lines[1] == "WARNING Ray has 20 GPUs, and a miner has at most 16 engines\n"


def test_engines_without_a_gpu_may_share_cores_but_not_in_silence(
    lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray of this machine is given as many cores as there are to be engines."""
    monkeypatch.setattr(making, "usable_cores", lambda: 2)
    given = Resources({"a": 0}, gpus=0, cores=5)
    assert engine_count(EnginesSettings(kind="ray", count=5), EMBEDDED, given) == 5
    assert lines == [
        "INFO Ray has 2 cores on a; 5 engines\n",
        "WARNING 5 engines share 2 cores, and each is slower for it\n",
    ]
    assert engine_count(AUTO, EMBEDDED, given) == 2
    assert engine_count(JOINED, EMBEDDED, given) == 5


def test_engines_may_wait_for_gpus(lines: list[str]) -> None:
    joined = EnginesSettings(kind="ray", address="auto", count=3)
    assert engine_count(joined, GPU, Resources({"a": 2}, gpus=2, cores=8)) == 3
    assert lines[1] == "WARNING no GPU for 1 engine yet: tried again until the cluster has more\n"


@pytest.mark.parametrize(
    ("settings", "words", "fix"),
    [
        (GPU, "preset gpu24 needs a GPU, and Ray finds none on a", "embedded needs none"),
        (
            EMBEDDED.model_copy(update={"device": "cuda"}),
            "--device cuda needs a GPU, and Ray finds none on a",
            "leave out --device",
        ),
    ],
)
def test_what_needs_a_gpu_is_named(settings: GenerationSettings, words: str, fix: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        engine_count(AUTO, settings, Resources({"a": 0}, gpus=0, cores=8))
    assert fix in refused.value.fix


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


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, "Ray does not start within 0 s"),
        ("10.0.0.1:80", "--engines.address 10.0.0.1:80: no Ray cluster answers within 0 s"),
    ],
)
async def test_ray_that_does_not_start_in_time_is_named_with_the_address_and_the_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str | None, words: str
) -> None:
    """As where something other than Ray listens."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(ray_engine, "START_LIMIT_S", 0.1)
    process = ray_engine.RayProcess(EnginesSettings(kind="ray", address=address))
    with pytest.raises(SetupError) as refused:
        await process.open()
    assert refused.value.problem == words


@pytest.mark.parametrize(("address", "fix"), [(None, "/tmp/ray"), ("auto", "`ray start --head`")])
async def test_ray_that_ends_while_it_starts_is_a_reason_with_a_fix(
    monkeypatch: pytest.MonkeyPatch, address: str | None, fix: str
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    engines = EnginesSettings(kind="ray", count=1, address=address)
    with pytest.raises(SetupError, match="Ray does not start: Ray's process ended") as refused:
        await make_engines(engines, preset("embedded"), None)
    assert fix in refused.value.fix
