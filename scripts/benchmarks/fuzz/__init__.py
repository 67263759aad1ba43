"""Files and requests that no sound program makes, and what becomes of them."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from protocol.errors import SetupError
from protocol.text import printable
from scripts.benchmarks.figures import write_figures

MOST_S = 1.0
MOST_MB = 300.0
SERVERS = "servers"
_ROOT = Path(__file__).parents[3]


def run(
    *,
    count: int = 10_000,
    only: Sequence[str] | None = None,
    seed: int = 1,
    out: Path | None = None,
) -> dict[str, Any]:
    """Feeds damaged files to every decoder and changed requests to both servers; prints a table.

    Args:
        count: Files for each decoder, and requests for each server.
        only: Names of decoders, or "servers"; everything if not given.
        seed: Chooses the damage.
        out: File for the figures as JSON.

    Returns:
        The figures by name: those of `decoding.Findings` and of `servers.Answers`.

    Raises:
        SetupError: An unknown name; or a file or a request was not dealt with as documented.
    """
    from scripts.benchmarks.fuzz.targets import TARGETS

    names = [*TARGETS, SERVERS] if only is None else list(only)
    for name in names:
        if name not in (*TARGETS, SERVERS):
            raise SetupError(
                f"there is nothing to fuzz of the name {name!r}",
                fix=f"name one of: {', '.join((*TARGETS, SERVERS))}",
            )
    decoders = examine([name for name in names if name != SERVERS], count, seed)
    servers: dict[str, Any] = {}
    if SERVERS in names:
        from scripts.benchmarks.fuzz.servers import ask_all

        servers = {name: asdict(found) for name, found in ask_all(count, seed).items()}
    figures = {"count": count, "seed": seed, "decoders": decoders, "servers": servers}
    write_figures(out, figures)
    if not _print(figures, Console()):
        raise SetupError("something was not dealt with as documented", fix="see the lines above")
    return figures


def examine(names: Sequence[str], count: int, seed: int) -> dict[str, dict[str, Any]]:
    """Returns the `decoding.Findings` of decoders by name, from a process of their own.

    Raises:
        SetupError: The process ended otherwise than by coming to its end.
    """
    command = [sys.executable, "-m", "scripts.benchmarks.fuzz.decoding", str(count), str(seed)]
    found: dict[str, dict[str, Any]] = {}
    with subprocess.Popen([*command, *names], cwd=_ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = zip(names, process.stdout, strict=False)
        for name, line in tqdm(lines, total=len(names), unit="decoder", leave=False):
            found[name] = json.loads(line)
    if process.returncode != 0 or len(found) < len(names):
        name = next((name for name in names if name not in found), "the last of them")
        raise SetupError(
            f"the decoder of {name} ended its process with status {process.returncode}",
            fix="this is a fault of the decoder; see the lines above",
        )
    return found


def is_sound(found: dict[str, Any]) -> bool:
    """Whether a decoder has kept to its errors and its bounds."""
    return not found["faults"] and found["slowest_s"] < MOST_S and found["grew_mb"] < MOST_MB


def _print(figures: dict[str, Any], console: Console) -> bool:
    table = Table(title=f"{figures['count']} damaged files for each decoder")
    for column in ("decoder", "outcomes", "slowest, s", "grew, MB", "faults"):
        table.add_column(column)
    sound = True
    for name, found in figures["decoders"].items():
        sound &= is_sound(found)
        table.add_row(
            name,
            ", ".join(f"{n} {word}" for word, n in sorted(found["outcomes"].items())),
            f"{found['slowest_s']:.3f}",
            f"{found['grew_mb']:.0f}",
            str(len(found["faults"])),
        )
    if figures["decoders"]:
        console.print(table)
    for name, found in figures["servers"].items():
        sound &= found["serves"] and not found["faults"] and not found["failures"]
        answers = ", ".join(f"{n} x {status}" for status, n in found["statuses"].items())
        console.print(f"{name}, {figures['count']} changed requests: {answers}")
        console.print(
            f"{name}: {found['failures']} failures of the miner's own; serves on: {found['serves']}"
        )
    for name, found in {**figures["decoders"], **figures["servers"]}.items():
        for fault in found["faults"][:10]:
            console.print(f"{name}: {printable(fault)}", markup=False)
    return sound
