import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from miner.chain import subtensor
from miner.doctor import network
from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from scripts.doctor import HEALTHY, UNWELL, main
from scripts.free_port import free_port

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> LocalSubnet:
    return create_local_subnet(tmp_path_factory.mktemp("subnet"), port=free_port())


@pytest.fixture
def run(
    subnet: LocalSubnet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs the doctor in this process and returns its exit status and what it printed."""
    monkeypatch.setattr(network, "measure_clock", lambda host: (0.2, 0.6))

    def doctor(*arguments: str) -> tuple[int, str]:
        argv = [
            *("--wallet.path", str(subnet.wallets), "--wallet.name", "miner"),
            *("--axon.ip", "127.0.0.1", "--axon.port", str(free_port())),
            *("--log.dir", str(tmp_path / "logs"), *arguments),
        ]
        status = main(argv)
        logger.remove()
        return status, capsys.readouterr().out

    return doctor


def test_a_machine_on_which_a_miner_can_run(subnet: LocalSubnet, run: Run, tmp_path: Path) -> None:
    status, text = run("--chain.file", str(subnet.neurons_file))
    assert status == HEALTHY, text
    lines = text.splitlines()
    names = ["preset", "python", "packages", "disk", "memory", "torch, GPU", "compiler"]
    names += ["scorer", "weights", "clock", "wallet", "registration", "axon port"]
    assert [line[12:26].strip() for line in lines] == names
    assert all(line.startswith("ok  ") for line in lines), text
    assert subnet.miner_hotkey in text
    assert not (tmp_path / "logs").exists()


def test_what_fails_comes_with_its_fix_and_status_1(subnet: LocalSubnet, run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = run(
            *("--chain.file", str(subnet.neurons_file), "--preset", "gpu80"),
            *("--models.dir", "/nowhere", "--axon.port", str(port)),
        )
    assert status == UNWELL
    failures = {line[12:26].strip() for line in text.splitlines() if line.startswith("failed")}
    assert {"weights", "axon port"} <= failures
    assert "fix: python -m scripts.fetch_models --preset gpu80 --models.dir /nowhere" in text
    assert f"ss -ltnp 'sport = :{port}'" in text


def test_json_is_one_object(subnet: LocalSubnet, run: Run) -> None:
    status, text = run("--chain.file", str(subnet.neurons_file), "--json", "--wallet.name", "no")
    found = json.loads(text)
    assert (status, found["ok"]) == (UNWELL, False)
    findings: dict[str, Any] = {finding["check"]: finding for finding in found["findings"]}
    assert findings["python"]["status"] == "ok"
    assert findings["wallet"]["status"] == "failed"
    assert "btcli wallet create --wallet.name no" in findings["wallet"]["fix"]
    assert findings["registration"]["status"] == "not checked"


def test_a_chain_that_hangs_does_not_hang_the_doctor(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(network: str) -> Any:
        released.wait(30.0)
        raise ConnectionError

    monkeypatch.setattr(subtensor, "_subtensor", hang)
    monkeypatch.setattr(network, "CHAIN_LIMIT_S", 0.4)
    start = time.monotonic()
    status, text = run(
        *("--subtensor.network", "test", "--preset", "embedded", "--allow_embedded"),
        *("--axon.external_ip", "127.0.0.1"),
    )
    assert time.monotonic() - start < 15.0
    released.set()
    assert status == UNWELL
    (line,) = [line for line in text.splitlines() if "registration" in line]
    assert line.startswith("failed")
    assert "cannot be read from test: no answer in time" in line
    assert "axon port" in text
    assert "reachable" in text


def test_settings_that_cannot_be_are_told_as_the_miner_tells_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--axon.prt", "1"]) == UNWELL
    assert "did you mean --axon.port?" in capsys.readouterr().err
    assert main([]) == UNWELL
    assert "no preset is given" in capsys.readouterr().err
    assert main(["--chain.file", "x", "--preset", "gpu9000"]) == UNWELL
    assert "there is no preset 'gpu9000'" in capsys.readouterr().err


def test_http_alone_is_checked_without_wallet_and_chain(run: Run) -> None:
    status, text = run(
        "--transports", "http", "--wallet.name", "no", "--http.port", str(free_port())
    )
    assert status == HEALTHY, text
    assert "http alone needs no wallet" in text
    assert "http alone needs no chain" in text
    assert "clock" not in text


def test_a_user_without_a_home_learns_where_caches_go_and_imports_what_the_miner_will(
    subnet: LocalSubnet, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "scripts.doctor",
        "--json",
        "--log.dir",
        str(tmp_path / "logs"),
    ]
    command += ["--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)]
    command += ["--wallet.name", "miner", "--axon.port", str(free_port())]
    environ = {**os.environ, "HOME": "/proc/home", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == HEALTHY, done.stdout + done.stderr
    findings = {entry["check"]: entry for entry in json.loads(done.stdout)["findings"]}
    assert findings["home"]["status"] == "warning"
    assert str(tmp_path / "logs" / "cache") in findings["home"]["found"]
    assert findings["wallet"]["status"] == "ok"
    assert not (tmp_path / "logs").exists()
    environ["BT_AXON_PORT"] = "no number"  # bittensor reads it when it is imported.
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == UNWELL
    findings = {entry["check"]: entry for entry in json.loads(done.stdout)["findings"]}
    assert findings["packages"]["status"] == "failed"
    assert "invalid literal for int()" in findings["packages"]["found"]


def test_help_comes_at_once_and_the_program_ends_with_the_status() -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.doctor", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60.0, check=False)

    shown = call("--help")
    assert shown.returncode == 0
    assert "--json" in shown.stdout
    assert "--axon.port" in shown.stdout
    imported = (
        "import scripts.doctor, sys; sys.exit(bool({'torch', 'bittensor'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", imported], check=False).returncode == 0
    assert call("--nonsense").returncode == UNWELL
