"""The commands on the pages for people work as printed.

Every command in a fenced `sh` block is run, in the order of the pages, or is listed here with the
reason why it is not. A new one has to be put into one of the two groups.
"""

import base64
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from protocol import ply
from scripts.demo import shaded_ball
from tests.support.pages import ROOT, Page, page, pages

RUN_PAGES = ("README.md", "docs/http.md")
"""Their commands are run, in this order and in one shell."""

RUN = (
    r"python -m neurons\.miner --transports http --preset embedded &",
    r"curl .*http://localhost:8093/(generate|health|status)",
    r"python -m scripts\.monitor_scores logs\b(?!.* --(alerts|follow))",
    r"python -m scripts\.inspect_asset \w+\.(ply|spz)",
    r"python -m scripts\.text_to_3d (?!.* --also)",
    r"splat-miner (--help|--version|make )",
)
"""What a command begins with that needs no GPU, no weights, no chain and no second machine."""

NOT_RUN = {
    r"make( \w+=\S+)* [\w-]+( \w+=\S+)*\s*(#.*)?$": "CI runs it; a test finds the target",
    r"\S*python3?(\.\d+)? -m venv|\. \S*/bin/activate": "the environment that runs this is one",
    r"git |cd ": "needs the repository's address, or leaves this checkout",
    r"(?!make).*(\.\.\.|\b(HOST|SS58|ID|NAME|IMAGE|FILE)\b)": "holds a placeholder",
    r"sudo |ssh ": "changes this machine, or another one",
    r"btcli |.*/btcli|.*pip install .*bittensor": "installs or uses btcli, on a chain",
    r".*(--subtensor\.network|--netuid|--wallet\.)": "needs a registered hotkey",
    r".*--config ": "needs that file",
    r".*--preset gpu(16|24|80)|.*EXTRAS=gpu": "needs a GPU and weights",
    r"python -m scripts\.benchmark ": "measures for minutes, and has tests of its own",
    r"python -m scripts\.train_embedded\.evaluate_refine ": "measures for hours",
    r"python -m neurons\.mock_validator --protocol gateway$": "waits for a miner",
    r"python -m scripts\.gateway_client ": "needs a gateway and its workers",
    r"npm ": "needs Node.js, and downloads packages",
    r"docker |systemctl |journalctl |pm2 |nvidia-smi": "needs that service",
    r"zcat |find logs ": "test_monitor_day.py runs it on a simulated day",
    r"python -m neurons\.miner --transports http": "the README starts one in the background",
    r"python -m scripts\.text_to_3d .* --also": "loads everything once more; has tests of its own",
    r"(npm|node|npx) ": "builds the viewer again, from packages of the internet",
    r"promtool ": "tests/deploy runs it on the rules",
    r"(python -m scripts\.monitor_scores|splat-miner monitor) ": "ends with what the log says",
}
"""What a command begins with, and why it is not run; the first that fits."""

NOT_RUN_PAGES = {"docs/deploy.md": "installs services; its last section says what was run, and how"}

LIMIT_S = 180.0
PORT = 8093


def fate(shown: Page, command: str) -> str | None:
    """Why a command is not run; None if it is."""
    if shown.name in NOT_RUN_PAGES:
        return NOT_RUN_PAGES[shown.name]
    if any(re.match(pattern, command) for pattern in RUN) and "..." not in command:
        return None if shown.name in RUN_PAGES else "run as the README has it"
    for pattern, reason in NOT_RUN.items():
        if re.match(pattern, command):
            return reason
    raise AssertionError(f"put this command of {shown.name} into RUN or NOT_RUN: {command}")


def printed_commands() -> list[str]:
    """The commands that are run, in order."""
    return [
        command
        for name in RUN_PAGES
        for command in page(name).commands()
        if fate(page(name), command) is None
    ]


def test_every_printed_command_is_run_or_listed_with_the_reason_why_not() -> None:
    for shown in pages():
        for command in shown.commands():
            fate(shown, command)
    assert len(printed_commands()) >= 3


def test_a_new_command_has_to_be_classified() -> None:
    with pytest.raises(AssertionError, match=r"command of README.md into RUN or NOT_RUN: rm -rf"):
        fate(page("README.md"), "rm -rf build")


def test_every_make_target_on_the_pages_exists() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set()
    for shown in pages():
        for command in [*shown.commands(), *shown.code()]:
            named |= set(re.findall(r"(?:^|&& )make ([a-z-]+)", command))
    assert {"demo", "test", "install"} <= named
    assert named <= set(targets)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository's, so that what commands write stays out of it."""
    for entry in ROOT.iterdir():
        if entry.name not in (".git", "logs"):
            (tmp_path / entry.name).symlink_to(entry)
    # What a reader has at hand.
    picture = tmp_path / "chair.png"
    shaded_ball(256).save(picture)
    picture.with_suffix(".png.base64").write_bytes(base64.b64encode(picture.read_bytes()))
    return tmp_path


@pytest.fixture
def printed(checkout: Path) -> Path:
    """A script of the commands, which ends the miner as a reader would."""
    if shutil.which("curl") is None:
        pytest.skip("the README asks with curl, which is not installed")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            pytest.skip(f"the README's port {PORT} is taken")
    ending = 'for job in $(jobs -p); do kill "$job"; wait "$job"; done'
    script = checkout / "printed.sh"
    script.write_text("\n".join(["set -ex", *printed_commands(), ending, ""]))
    return script


@pytest.mark.timeout(LIMIT_S + 15)
def test_the_printed_commands_work_in_their_order(checkout: Path, printed: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MINER_")}
    environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ['PATH']}"
    with (checkout / "output.txt").open("w+") as output:
        process = subprocess.Popen(
            ["bash", str(printed)],
            cwd=checkout,
            env=environ,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):  # It has ended, and the miner with it.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        said = output.read()
    assert status == 0, said[-4000:]
    named = re.findall(r" (?:-o|--out|--html) ([\w.-]+)", "\n".join(printed_commands()))
    assert "cube.ply" in named
    for name in named:
        assert (checkout / name).stat().st_size > 1000, name
        if name.endswith(".ply"):
            assert len(ply.decode((checkout / name).read_bytes())) > 1000, name
