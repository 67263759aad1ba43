"""The console command: which program it runs, with which arguments, name and exit status."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from scripts import cli
from scripts.cli import PROGRAMS, main

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _command_line_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["splat-miner"])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_subcommand_is_a_program_that_shows_its_help_under_its_own_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: splat-miner {name} ")


def test_started_by_python_a_program_keeps_that_name(capsys: pytest.CaptureFixture[str]) -> None:
    from scripts.inspect_asset import main as inspect

    with pytest.raises(SystemExit):
        inspect(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m scripts.inspect_asset ")


def test_the_list_of_commands_needs_no_library() -> None:
    script = (
        "import sys; before = set(sys.modules); from scripts.cli import main; main(['--help']);"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *usage, imported = done.stdout.splitlines()
    for name in PROGRAMS:
        assert any(line.startswith(f"  {name} ") for line in usage), name
    assert set(imported.split()) <= sys.stdlib_module_names | {"scripts", "miner", "protocol"}


def test_a_mistyped_command_is_refused_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["monitr", "logs"]) == 2
    error = capsys.readouterr().err
    assert error == "error: unknown command 'monitr'\n  fix: did you mean splat-miner monitor?\n"
    assert main(["\x1b[2J"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown command '\\x1b[2J'\n  fix: splat")


def test_without_a_command_the_list_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("usage: splat-miner COMMAND")


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"splat-miner {metadata.version('splat-miner')}\n"


def test_arguments_and_exit_status_pass_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tmp_path / "none.ply")]) == 2  # Its own: cannot be read.
    assert "none.ply" in capsys.readouterr().err
    assert main(["fetch", "--preset", "embedded"]) == 0
    assert capsys.readouterr().out == "preset embedded needs no download\n"


def test_the_installed_command_is_this_one() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        scripts = tomllib.load(file)["project"]["scripts"]
    assert scripts == {"splat-miner": f"{cli.__name__}:{main.__name__}"}
    command = Path(sys.executable).with_name("splat-miner")
    done = subprocess.run([command, "nothing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "splat-miner --help lists the commands" in done.stderr
