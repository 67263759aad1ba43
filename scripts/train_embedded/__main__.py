"""One command from nothing to the weights of the preset `embedded` and what they are worth."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from scripts.train_embedded.drawing import draw_world
from scripts.train_embedded.evaluate import report, spare_cores
from scripts.train_embedded.jobs import train_all
from scripts.train_embedded.plot import plot_losses
from scripts.train_embedded.recipe import TINY, Places, Recipe

OVERHEAD_MINUTES = 1.5
"""Set aside for starting the processes, encoding pictures and exporting."""


def main() -> None:
    """Reads the command line, draws the world, trains, exports, plots the losses, evaluates."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_embedded", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--minutes", type=float, help="wall-clock limit on one GPU, scorer and evaluation aside"
    )
    parser.add_argument("--tiny", action="store_true", help="a few steps of toy networks")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of a step"
    )
    arguments = parser.parse_args()
    recipe = replace(TINY if arguments.tiny else Recipe(), mixed=arguments.precision == "bfloat16")
    places = Places(arguments.state, arguments.out)
    started = time.monotonic()
    draw_world(recipe, places, torch.device(arguments.device))
    if arguments.minutes is not None:
        spent = (time.monotonic() - started) / 60
        recipe = recipe.within(max(0.1, arguments.minutes - spent - OVERHEAD_MINUTES))
    train_all(recipe, places, arguments.device)
    plot_losses(places.state, places.state / "losses.png")
    megabytes = sum(f.stat().st_size for f in places.out.rglob("*") if f.is_file()) / 1e6
    minutes = (time.monotonic() - started) / 60
    print(f"wrote {places.out} ({megabytes:.2f} MB) after {minutes:.1f} minutes")
    if not arguments.tiny:
        report(places.out, places.state, jobs=spare_cores())


if __name__ == "__main__":
    main()
