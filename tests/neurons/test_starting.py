"""What the program needs to start, and that every reason not to is a sentence and status 2."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from neurons.miner import NOT_STARTED, STOPPED
from scripts.free_port import free_port
from tests.support.miner_process import FAKED

ROOT = Path(__file__).parents[2]


@pytest.fixture
def subnet(tmp_path: Path) -> LocalSubnet:
    return create_local_subnet(tmp_path, port=free_port())


@pytest.fixture
def homeless() -> dict[str, str]:
    """An environment of a user whose home cannot be written, not even by root."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, "HOME": "/proc/home", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(folder: Path, *flags: str, environ: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Runs a miner that ends by itself."""
    command = [sys.executable, "-m", "neurons.miner", "--log.dir", str(folder / "logs"), *flags]
    return subprocess.run(
        command, cwd=folder, env=environ, capture_output=True, text=True, timeout=90, check=False
    )


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    log = folder / "logs" / "score.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [line for line in events if line["event"] == event]


def wallet_flags(subnet: LocalSubnet) -> list[str]:
    return [
        *("--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)),
        *("--wallet.name", "miner", "--axon.ip", "127.0.0.1", "--axon.port", str(free_port())),
    ]


@pytest.fixture
def serving(tmp_path: Path, homeless: dict[str, str]) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", FAKED, "--transports", "http", "--http.port", str(free_port())]
    process = subprocess.Popen(
        [*command, "--log.dir", str(tmp_path / "logs")],
        cwd=tmp_path,
        env=homeless,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


async def test_http_alone_needs_neither_wallet_nor_chain_nor_home(
    tmp_path: Path, serving: "subprocess.Popen[str]"
) -> None:
    end = time.monotonic() + 90.0
    while "ready" not in [line["state"] for line in lines(tmp_path, "state_changed")]:
        assert serving.poll() is None
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    serving.send_signal(signal.SIGTERM)
    output, _ = await asyncio.to_thread(serving.communicate, None, 30.0)
    assert serving.returncode == STOPPED, output
    (started,) = lines(tmp_path, "miner_started")
    assert started["transports"] == ["http"]
    assert started["preset"] == "embedded"
    assert started["back_end"] == "triposr"
    assert [(rung["name"], rung["lift_steps"]) for rung in started["rungs"]] == [
        *(("full", 0), ("four_steps", 0), ("draft", 0))
    ]
    assert "3D back end triposr: splats and meshes" in output
    assert "four_steps (4 steps of a 128 px picture, at most 20,000 Gaussians)" in output
    assert not {"hotkey", "uid", "netuid", "network"} & set(started)
    assert "http alone: no wallet is opened and no chain is read" in output
    assert "no preset is given: it is embedded" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("transports", ["push,http", "pull,http", "push", "pull"])
def test_every_other_way_in_needs_a_wallet_and_a_chain(
    tmp_path: Path, homeless: dict[str, str], subnet: LocalSubnet, transports: str
) -> None:
    done = run(tmp_path, "--transports", transports, environ=homeless)
    assert done.returncode == NOT_STARTED
    assert "no preset is given, and there is no default on finney" in done.stderr
    if transports != "push,http":
        return
    flags = ("--chain.file", str(subnet.neurons_file), "--wallet.path", str(tmp_path / "none"))
    done = run(tmp_path, "--transports", transports, *flags, environ=homeless)
    assert done.returncode == NOT_STARTED
    assert "the wallet has no hotkey" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_import_that_fails_is_a_sentence_and_its_traceback_is_in_the_log(
    tmp_path: Path, homeless: dict[str, str], subnet: LocalSubnet
) -> None:
    environ = homeless | {"BT_AXON_PORT": "no number"}  # bittensor reads it when it is imported.
    done = run(tmp_path, *wallet_flags(subnet), environ=environ)
    assert done.returncode == NOT_STARTED, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: unexpected ValueError: invalid literal for int()" in done.stderr
    assert "fix: python -m scripts.doctor" in done.stderr
    log = (tmp_path / "logs" / "miner.log").read_text()
    assert "Traceback" in log
    assert "bittensor" in log
    assert lines(tmp_path, "miner_stopped")[0]["exit_code"] == NOT_STARTED


def test_a_terminal_of_ascii_gets_a_sentence_too(
    tmp_path: Path, homeless: dict[str, str], subnet: LocalSubnet
) -> None:
    plain = homeless | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    plain["PYTHONCOERCECLOCALE"] = "0"
    # A short name: the message cuts long ones.
    flags = ("--chain.file", "caf\u00e9.json", "--wallet.path", str(subnet.wallets))
    done = run(tmp_path, *flags, "--wallet.name", "miner", environ=plain)
    assert done.returncode == NOT_STARTED
    assert "Traceback" not in done.stderr
    assert "caf\\" in done.stderr
    done = run(tmp_path, "--help", environ=plain)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["neurons.miner", "neurons.mock_validator"])
def test_where_the_reason_cannot_be_written_the_status_says_not_to_restart(program: str) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", program, "--nonsense"]
        done = subprocess.run(command, cwd=ROOT, stderr=full, timeout=60, check=False)
    assert done.returncode == NOT_STARTED


def test_a_name_that_is_not_utf_8_is_refused_without_a_traceback(
    tmp_path: Path, homeless: dict[str, str]
) -> None:
    done = run(tmp_path, "--transports", "http", "--wallet.name", "caf\udce9", environ=homeless)
    assert done.returncode == NOT_STARTED
    assert "is not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_whose_name_is_not_utf_8_is_no_obstacle(
    tmp_path: Path, homeless: dict[str, str]
) -> None:
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    command = [sys.executable, "-m", "neurons.miner", "--transports", "http", "--preset", "gpu80"]
    done = subprocess.run(
        [*command, "--models.dir", "none", "--http.port", str(free_port())],
        cwd=folder,
        env=homeless,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == NOT_STARTED
    assert "Traceback" not in done.stderr
    assert "UnicodeEncodeError" not in done.stderr + (folder / "logs" / "miner.log").read_text()


@pytest.mark.parametrize("program", ["neurons.miner", "neurons.mock_validator", "scripts.doctor"])
def test_a_python_without_the_libraries_is_named_with_the_fix(program: str) -> None:
    done = subprocess.run(  # -S hides what is installed.
        [sys.executable, "-S", "-m", program, "--help"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == NOT_STARTED
    assert done.stderr.startswith("error: ")
    assert "has no loguru" in done.stderr
    assert "make install" in done.stderr
    assert "Traceback" not in done.stderr
