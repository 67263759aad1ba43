"""Measures stages and codecs on this machine: `python -m scripts.benchmark pipeline`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generation.presets import PRESETS
from generation.weights.sources import FLUX_NAMES
from miner.interpreter import program_name
from miner.surroundings import settle, settle_terminal
from protocol.errors import SetupError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one of `scripts.benchmarks`; returns the exit status.

    Args:
        arguments: The command line; that of the process when None.
    """
    settle_terminal()
    options: dict[str, Any] = vars(_parser().parse_args(arguments))
    try:
        settle()
        benchmark = importlib.import_module(f"scripts.benchmarks.{options.pop('benchmark')}")
        benchmark.run(**options)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """One subcommand per module of `scripts.benchmarks`; its options are `run`'s arguments."""
    parser = argparse.ArgumentParser(
        prog=program_name("scripts.benchmark"), description=__doc__, allow_abbrev=False
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
    pipeline.add_argument(
        "--recipe",
        dest="recipes",
        action="append",
        choices=("plain", "fast"),
        help="what to measure (fast); give both, each with --recipe, to compare them",
    )
    pipeline.add_argument(
        "--weights",
        choices=("random", "real"),
        default="real",
        help="random: full size, drawn on the GPU (%(default)s)",
    )
    pipeline.add_argument(
        "--runs", type=_positive, help="tasks one after the other (30 on a GPU, else 10)"
    )
    pipeline.add_argument(
        "--requests", type=_positive, help="tasks at each concurrency (24 on a GPU, else none)"
    )
    pipeline.add_argument(
        "--plain.runs",
        dest="plain_runs",
        type=_positive,
        metavar="RUNS",
        help="tasks of the plain recipe, if fewer",
    )
    pipeline.add_argument(
        "--candidates",
        type=int,
        metavar="SECONDS",
        help="time of one request in which candidates are made (25 on a GPU, else none)",
    )
    pipeline.add_argument(
        "--memory.gib",
        dest="memory_gib",
        type=_positive,
        metavar="GIB",
        help="most device memory of the fast recipe (22 for gpu24 and gpu24-splat, 15.5 for gpu16)",
    )
    pipeline.add_argument(
        "--models.dir", dest="models_dir", type=Path, metavar="DIR", help="the models folder"
    )
    pipeline.add_argument(
        "--text_to_image.model",
        dest="model",
        choices=FLUX_NAMES.models,
        help="text-to-image model (the preset's)",
    )
    pipeline.add_argument(
        "--text_to_image.eight_bit",
        dest="eight_bit",
        type=_truth,
        metavar="true|false",
        help="whether it is held in 8 bits (as the preset says)",
    )
    pipeline.add_argument(
        "--triposplat.accept_dinov3_license",
        dest="accept_dinov3_license",
        type=_truth,
        default=False,
        metavar="true|false",
        help="accept the DINOv3 License, for TripoSplat with --weights real",
    )
    parts = command("parts", "each network alone, in every way of running it", device="cuda")
    parts.add_argument("--only", action="append", metavar="NAME", help="one part of them; repeat")
    command("triposr", "TripoSR: forward pass, density, surface", device="cuda")
    triposplat = command("triposplat", "TripoSplat: each part, with TripoSR too", device="cuda")
    triposplat.add_argument(
        "--only", action="append", metavar="NAME", help="one part of it; repeat"
    )
    dream = command("dreamgaussian", "DreamGaussian and refinement: each step", device="cuda")
    dream.add_argument("--only", action="append", metavar="NAME", help="one part of it; repeat")
    splats = command("splats", "splat clouds: time and likeness to the field", device="cpu")
    splats.add_argument("--size", type=_positive, default=518, help="pixels (%(default)s)")
    splats.add_argument(
        "--views", type=_positive, default=16, help="how many of the 16 (%(default)s)"
    )
    guard = command("guard", "the timing guard in a simulation, against other policies")
    guard.add_argument(
        "--requests", type=_positive, default=1500, help="in each simulation (%(default)s)"
    )
    guard.add_argument(
        "--scenario", dest="scenarios", action="append", metavar="NAME", help="only this; repeat"
    )
    guard.add_argument(
        "--card", dest="cards", action="append", metavar="NAME", help="only this; repeat"
    )
    guard.add_argument(
        "--load", dest="loads", action="append", type=float, metavar="X", help="only this; repeat"
    )
    guard.add_argument("--seed", type=_positive, default=1, help="(%(default)s)")
    guard.add_argument(
        "--plots", type=Path, metavar="DIR", help="PNG plots, the trade-off curve among them"
    )
    quality = command("quality", "candidates and the gate on the preset embedded: what is right")
    quality.add_argument(
        "--prompts", dest="count", type=_positive, default=100, help="(%(default)s)"
    )
    quality.add_argument(
        "--cache",
        type=Path,
        default=Path("quality-cache"),
        metavar="DIR",
        help="where finished prompts are kept, to go on after a break (%(default)s)",
    )
    quality.add_argument(
        "--plots", type=Path, metavar="DIR", help="PNG of the figures and of some candidates"
    )
    candidates = command("candidates", "what gate and candidates earn, in a simulation")
    candidates.add_argument(
        "--seeds", type=_positive, default=20, help="runs of each policy (%(default)s)"
    )
    candidates.add_argument("--plots", type=Path, metavar="DIR", help="a PNG plot")
    fuzz = command("fuzz", "damaged files for every decoder, changed requests for both servers")
    fuzz.add_argument("--count", type=_positive, default=10_000, help="of each (%(default)s)")
    fuzz.add_argument("--only", action="append", metavar="NAME", help="only this; repeat")
    fuzz.add_argument("--seed", type=_positive, default=1, help="(%(default)s)")
    soak = command("soak", "a real miner under good callers, strangers and faults; on Linux")
    soak.add_argument("--minutes", type=float, default=20.0, help="(%(default)s)")
    soak.add_argument(
        "--pause",
        dest="pause_s",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="between two good requests, in the mean (%(default)s)",
    )
    soak.add_argument(
        "--hostile",
        dest="hostile_per_second",
        type=float,
        default=4.0,
        metavar="N",
        help="pieces of hostile traffic in a second (%(default)s)",
    )
    soak.add_argument(
        "--silent", type=_positive, default=600, help="silent connections (%(default)s)"
    )
    soak.add_argument("--seed", type=_positive, default=1, help="(%(default)s)")
    soak.add_argument(
        "--plot", dest="plot_file", type=Path, metavar="FILE", help="PNG of the process over time"
    )
    engines = command("engines", "engines through Ray: throughput by number, the way, kills")
    engines.add_argument(
        "--preset", dest="preset_name", choices=PRESETS, default="embedded", help="(%(default)s)"
    )
    engines.add_argument(
        "--weights", choices=("random", "real"), default="real", help="(%(default)s)"
    )
    engines.add_argument(
        "--count",
        dest="counts",
        action="append",
        type=_positive,
        metavar="N",
        help="of engines; repeat (1 and 2)",
    )
    engines.add_argument(
        "--requests", type=_positive, default=60, help="for each engine (%(default)s)"
    )
    engines.add_argument(
        "--kills", type=int, default=0, metavar="N", help="of engines under load (%(default)s)"
    )
    monitor = command("monitor", "reading a score log: CPU seconds")
    monitor.add_argument("--lines", type=_positive, default=1_000_000, help="(%(default)s)")
    command("codecs", "PLY and SPZ: time and size")
    command("decoders", "PLY and SPZ: the most expensive files that are accepted, and traps")
    scoring = command("scoring", "the validator's scorer: every part, memory", device="cuda")
    scoring.add_argument(
        "--gaussians", type=_positive, default=120_000, help="in the cloud (%(default)s)"
    )
    scoring.add_argument("--runs", type=_positive, default=30, help="(%(default)s)")
    rendering = command("rendering", "both rasterisers: time and likeness", device="cpu")
    rendering.add_argument(
        "--golden",
        type=Path,
        default=Path("tests/golden/render"),
        metavar="DIR",
        help="reference pictures (%(default)s)",
    )
    return parser


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text == "true"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
