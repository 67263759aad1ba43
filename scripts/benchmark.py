"""Measures stages and codecs on this machine: `python -m scripts.benchmark pipeline`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generation.presets import PRESETS
from protocol.errors import SetupError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of `scripts.benchmarks`; returns the exit status.

    Args:
        arguments: The command line; that of the process when None.
    """
    options: dict[str, Any] = vars(_parser().parse_args(arguments))
    benchmark = importlib.import_module(f"scripts.benchmarks.{options.pop('benchmark')}")
    try:
        benchmark.run(**options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """One subcommand per module of `scripts.benchmarks`; its options are `run`'s arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmark", description=__doc__, allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="WHAT")

    def command(name: str, text: str, *, device: str | None = None) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--json", dest="out", type=Path, metavar="FILE", help="figures as JSON")
        if device is not None:
            added.add_argument("--device", default=device, help="torch device (%(default)s)")
        return added

    pipeline = command("pipeline", "seconds by stage of a preset, from prompt to asset")
    pipeline.add_argument(
        "--preset", dest="preset_name", choices=PRESETS, default="embedded", help="(%(default)s)"
    )
    pipeline.add_argument("--runs", type=_positive, default=10, help="tasks (%(default)s)")
    pipeline.add_argument(
        "--models.dir", dest="models_dir", type=Path, metavar="DIR", help="the models folder"
    )
    command("triposr", "TripoSR: forward pass, density, surface", device="cuda")
    splats = command("splats", "splat clouds: time and likeness to the field", device="cpu")
    splats.add_argument("--size", type=_positive, default=518, help="pixels (%(default)s)")
    splats.add_argument(
        "--views", type=_positive, default=16, help="how many of the 16 (%(default)s)"
    )
    command("codecs", "PLY and SPZ: time and size")
    rendering = command("rendering", "both rasterisers: time and likeness", device="cpu")
    rendering.add_argument(
        "--golden",
        type=Path,
        default=Path("tests/golden/render"),
        metavar="DIR",
        help="reference pictures (%(default)s)",
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
