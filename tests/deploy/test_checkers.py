"""The files in `deploy`, as the tools that read them see them; those that are installed here."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "systemd" / "splat-miner@.service"
MOST_EXPOSURE = 2.0


def run(*command: str | Path, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def systemd_analyze() -> str:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd is not installed")
    return tool


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    tool = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if tool is None:
        pytest.skip("hadolint is not installed; it is in the extra dev")
    done = run(tool, "--no-color", DEPLOY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_systemd_finds_nothing_wrong_in_the_unit(tmp_path: Path, systemd_analyze: str) -> None:
    text = UNIT.read_text()
    program = "/opt/splat-miner/.venv/bin/splat-miner run"
    assert f"ExecStart={program}\n" in text
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(program, "/bin/true"))  # It has to exist.
    done = run(systemd_analyze, "verify", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_the_unit_confined(systemd_analyze: str) -> None:
    limit = f"--threshold={MOST_EXPOSURE * 10:.0f}"
    done = run(systemd_analyze, "security", "--offline=true", limit, "--no-pager", UNIT)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd cannot judge a unit that is not loaded")
    assert done.returncode == 0, done.stdout


def test_compose_accepts_its_file(tmp_path: Path) -> None:
    # A copy, because Compose reads .env beside the file.
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    folder = tmp_path / "deploy"
    for name in (".env", "grafana.env"):
        (folder / f"{name}.example").rename(folder / name)
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and run(*command, "version").returncode == 0:
            break
    else:
        pytest.skip("Docker Compose is not installed")
    done = run(*command, "--profile", "cpu", "config", "--quiet", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
