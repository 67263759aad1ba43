"""A miner, mock validators and a mock gateway on this machine, talking as they would on the subnet.

First the miner takes tasks from a validator and from a gateway, then a validator pushes tasks to
the miner.

Usage: python -m scripts.demo [--out DIR] [--preset NAME]
"""

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from generation.presets import PRESETS
from miner.interpreter import program_name
from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from miner.mock_validator.records import TrialRecord, read_records
from miner.mock_validator.report import write_overview, write_report
from miner.surroundings import settle, settle_terminal
from neurons.mock_validator import results_table
from protocol.errors import SetupError
from scripts.free_port import free_port

_START_LIMIT_S = 900.0
_STOP_LIMIT_S = 60.0
_PICTURE_SIDE = 256
_MINER_LOG = "miner.txt"
_PULL, _GATEWAY = "pull", "gateway"
_IMAGES = "images"

_Process = subprocess.Popen[bytes]


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; 0 if every answer was good and the miner stopped cleanly."""
    parser = argparse.ArgumentParser(prog=program_name("scripts.demo"), description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="(%(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="embedded", help="(%(default)s)")
    options = parser.parse_args(argv)
    settle_terminal()
    console = Console()
    try:
        settle()
    except SetupError as error:
        parser.error(str(error))
    if not _is_ours(options.out):
        parser.error(f"--out: {options.out} holds something else than a demo; name another folder")
    shutil.rmtree(options.out, ignore_errors=True)
    (options.out / _IMAGES).mkdir(parents=True)
    (options.out / _MINER_LOG).touch()
    shaded_ball(_PICTURE_SIDE).save(options.out / _IMAGES / "green-ball.png")

    port, pull_port, gateway_port = free_port(), free_port(), free_port()
    subnet = create_local_subnet(options.out, port=port, validator_port=pull_port)
    started = time.monotonic()
    with (
        _pull_validator(options.out, subnet, pull_port) as pulled,
        _gateway(options.out, subnet, gateway_port) as gateway,
        _listening((pulled, pull_port), (gateway, gateway_port)),
        _miner(options.out, subnet, port, gateway_port, options.preset) as miner,
    ):
        if not _wait_until_ready(miner, options.out, console):
            return 1
        console.print(f"The miner is ready after {time.monotonic() - started:.1f} s.")
        with console.status("the miner takes tasks from a validator and from a gateway"):
            fetched = _end_of(pulled, _START_LIMIT_S) or _end_of(gateway, _START_LIMIT_S)
        asked = _validator(options.out, subnet, port)
        miner.send_signal(signal.SIGTERM)
        stopped = _end_of(miner, _STOP_LIMIT_S)
    try:
        taken = [*_records(options.out, _PULL), *_records(options.out, _GATEWAY)]
        records = taken + read_records(options.out)
    except OSError:
        return fetched or asked or 1

    notes = [
        f"A miner neuron with the preset {options.preset}, pulling from a mock validator, taking "
        f"tasks from a mock gateway and answering another validator, over loopback with signed "
        f"requests; "
        f"{time.monotonic() - started:.1f} s from start to stop."
    ]
    knows = PRESETS[options.preset].knows
    if knows:
        notes.append(f"This preset's small networks know only {knows}; a dragon is beyond them.")
    console.print(results_table(taken))
    report = write_report(options.out, records, notes=notes, images=_IMAGES)
    write_overview(options.out, records)
    for note in notes:
        console.print(note)
    console.print(f"Everything is in {options.out}/; open {report} in a browser.")
    if stopped != 0:
        console.print(f"[red]The miner ended with status {stopped}; see {options.out}/{_MINER_LOG}")
    return fetched or asked or stopped


def _end_of(process: _Process, limit_s: float) -> int:
    """The exit status of a process; one that outstays its limit is killed, which shows in it."""
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _is_ours(out: Path) -> bool:
    """Whether the folder may be emptied: it is an earlier demo's, empty, or not there."""
    if not out.exists() or (out / _MINER_LOG).exists():
        return True
    return out.is_dir() and not any(out.iterdir())


def shaded_ball(side: int) -> Image.Image:
    """A green ball on light grey, lit from the upper left: the picture of the image task."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    squared = (x**2 + y**2) / 0.6**2
    z = np.sqrt(np.clip(1 - squared, 0, 1))
    light = np.clip(0.35 + 0.65 * (-0.5 * x / 0.6 - 0.6 * y / 0.6 + 0.62 * z), 0.1, 1)
    ball = light[..., None] * np.array([60, 190, 80])
    picture = np.where(squared[..., None] < 1, ball, 225)
    return Image.fromarray(picture.astype(np.uint8))


def _pull_validator(out: Path, subnet: LocalSubnet, port: int) -> AbstractContextManager[_Process]:
    """A validator that serves tasks until they are done."""
    options = ["--axon.port", str(port), "--rules.cooldown", "2"]
    options += ["--wallet.path", str(subnet.wallets), "--wallet.name", "validator"]
    return _serving(out, _PULL, subnet, ("a green tree", "a yellow chair"), options)


def _gateway(out: Path, subnet: LocalSubnet, port: int) -> AbstractContextManager[_Process]:
    """A gateway that hands out tasks until they are done."""
    options = ["--gateway.port", str(port)]
    return _serving(out, _GATEWAY, subnet, ("an orange mushroom",), options)


@contextmanager
def _serving(
    out: Path, protocol: str, subnet: LocalSubnet, prompts: Sequence[str], options: list[str]
) -> Iterator[_Process]:
    folder = out / protocol
    folder.mkdir()
    (folder / "prompts.txt").write_text("\n".join(prompts))
    command = [sys.executable, "-m", "neurons.mock_validator", "--protocol", protocol]
    command += ["--out", str(folder), "--miner.hotkey", subnet.miner_hotkey, *options]
    command += ["--prompts", str(folder / "prompts.txt"), "--images", str(out / _IMAGES)]
    with _running(command, folder / "output.txt") as process:
        yield process


@contextmanager
def _listening(*servers: tuple[_Process, int]) -> Iterator[None]:
    """Enters once every process listens on its port, or has ended."""
    for process, port in servers:
        while process.poll() is None and not _listens(port):
            time.sleep(0.1)
    yield


def _records(out: Path, protocol: str) -> list[TrialRecord]:
    """The records of a trial in a folder, their files named from the demo's folder."""

    def below(record: TrialRecord) -> dict[str, str | None]:
        files = {"spz": record.spz, "ply": record.ply, "png": record.png}
        return {kind: name and f"{protocol}/{name}" for kind, name in files.items()}

    return [record.model_copy(update=below(record)) for record in read_records(out / protocol)]


@contextmanager
def _running(command: list[str], output: Path) -> Iterator[_Process]:
    with output.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


@contextmanager
def _miner(
    out: Path, subnet: LocalSubnet, port: int, gateway_port: int, preset: str
) -> Iterator[_Process]:
    command = [sys.executable, "-m", "neurons.miner"]
    command += ["--chain.file", str(subnet.neurons_file), "--axon.port", str(port)]
    command += ["--axon.ip", "127.0.0.1", "--preset", preset, "--log.dir", str(out)]
    command += ["--wallet.path", str(subnet.wallets), "--wallet.name", "miner"]
    command += ["--transports", "push,pull,gateway", "--candidates.max", "2"]
    command += ["--gateway.nodes", f"http://127.0.0.1:{gateway_port}", "--gateway.idle", "1.5"]
    with _running(command, out / _MINER_LOG) as process:
        yield process


def _wait_until_ready(miner: _Process, out: Path, console: Console) -> bool:
    end = time.monotonic() + _START_LIMIT_S
    with console.status("starting the miner") as status:
        while time.monotonic() < end and miner.poll() is None:
            state = _state(out / "score.jsonl")
            if state == "ready":
                return True
            status.update(f"the miner is {state.replace('_', ' ')}")
            time.sleep(0.2)
    console.print("[red]The miner did not become ready. Its last words:")
    console.print((out / _MINER_LOG).read_text(errors="replace")[-2000:], markup=False)
    return False


def _state(log: Path) -> str:
    state = "starting"
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            event = json.loads(line) if line.endswith("}") else {}
            state = event.get("state", state)
    return state


def _validator(out: Path, subnet: LocalSubnet, port: int) -> int:
    command = [sys.executable, "-m", "neurons.mock_validator", "--miner", f"127.0.0.1:{port}"]
    command += ["--miner.hotkey", subnet.miner_hotkey, "--wallet.path", str(subnet.wallets)]
    command += ["--wallet.name", "validator", "--out", str(out), "--images", str(out / _IMAGES)]
    prompts = out / "prompts.txt"
    prompts.write_text("a blue cube\na red sports car\na pink mug\na golden dragon statue\n")
    return subprocess.run([*command, "--prompts", str(prompts)], check=False).returncode


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    raise SystemExit(main())
