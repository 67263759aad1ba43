"""One command from nothing to the weights of the preset `embedded`."""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import multiprocessing

from scripts.train_embedded import export, train_flux, train_saliency, train_triposr, train_vae
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.plot import plot_losses
from scripts.train_embedded.recipe import TINY, Places, Recipe

SEED = 17

OVERHEAD_MINUTES = 0.8
"""Set aside for starting the processes, encoding pictures and exporting."""


def main() -> None:
    """Reads the command line, draws the world, trains, exports, plots the losses."""
    parser = argparse.ArgumentParser(prog="python -m scripts.train_embedded", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, help="wall-clock limit of the whole command")
    parser.add_argument("--tiny", action="store_true", help="a few steps of toy networks")
    arguments = parser.parse_args()
    recipe = TINY if arguments.tiny else Recipe()
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


def draw_world(recipe: Recipe, places: Places, device: torch.device) -> None:
    """Draws the bank, unless an earlier run did."""
    if not places.bank.is_file():
        radius = recipe.triposr.radius
        size = 2 * recipe.image_size
        bank = Bank.draw(recipe.views, size, recipe.points, radius, seed=SEED, device=device)
        bank.save(places.bank)


def load_bank(places: Places, device: str) -> Bank:
    """Reads the bank; the first thing that every training's process does."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    return Bank.load(places.bank, torch.device(device))


def text_to_image(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the small FLUX."""
    bank = load_bank(places, device).without_points()
    vae = train_vae.train(recipe, places, bank, row=0)
    export.write_flux(train_flux.train(recipe, places, bank, vae, row=0), vae, places.out)


def image_to_3d(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the small TripoSR."""
    bank = load_bank(places, device)
    export.write_triposr(train_triposr.train(recipe, places, bank, row=1), places.out)


def saliency(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the saliency network."""
    bank = load_bank(places, device).without_points()
    export.write_saliency(train_saliency.train(recipe, places, bank, row=2), places.out)


JOBS: tuple[Callable[[Recipe, Places, str], None], ...] = (text_to_image, image_to_3d, saliency)


def train_all(recipe: Recipe, places: Places, device: str) -> None:
    """Runs the trainings side by side on one GPU, one after another on a CPU."""
    places.out.mkdir(parents=True, exist_ok=True)
    if device == "cpu":
        for job in JOBS:
            job(recipe, places, device)
        return
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=job, args=(recipe, places, device)) for job in JOBS]
    for process in processes:
        process.start()
    try:
        while any(process.is_alive() for process in processes):
            time.sleep(0.5)
            failed = [job.__name__ for job, p in zip(JOBS, processes, strict=True) if p.exitcode]
            if failed:
                raise SystemExit(f"training failed: {', '.join(failed)}; run again to resume")
    finally:
        for process in processes:
            process.terminate()
            process.join()


if __name__ == "__main__":
    main()
