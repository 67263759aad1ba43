"""The trainings as jobs, each in a process of its own: one alone, then the others side by side."""

import time
from collections.abc import Callable

import torch
from torch import multiprocessing

from scripts.train_embedded import (
    export,
    train_flux,
    train_saliency,
    train_scorer,
    train_triposplat,
    train_triposr,
    train_vae,
)
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.evaluate import spare_cores
from scripts.train_embedded.recipe import Places, Recipe


def load_bank(recipe: Recipe, places: Places, device: str) -> Bank:
    """Reads the bank; the first thing that every training's process does."""
    set_up(recipe, device)
    return Bank.load(places.bank, torch.device(device))


def set_up(recipe: Recipe, device: str) -> None:
    """Chooses how a GPU computes."""
    if torch.device(device).type != "cuda":
        return
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    if not recipe.mixed:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
    # Not on a CPU, where it would slow down whatever else runs in the process.
    torch.set_float32_matmul_precision("high")


def autoencoder(recipe: Recipe, places: Places, device: str) -> None:
    """Trains the autoencoder of the small FLUX, unless an earlier run did."""
    if not places.vae.is_dir():
        bank = load_bank(recipe, places, device).without_points()
        export.write_vae(train_vae.train(recipe, places, bank, row=0), places.vae)


def text_to_image(recipe: Recipe, places: Places, device: str) -> None:
    """Trains the rest of the small FLUX and exports all of it."""
    bank = load_bank(recipe, places, device).without_points()
    vae = export.read_vae(places.vae, bank.objects.device)
    export.write_flux(train_flux.train(recipe, places, bank, vae, row=0), vae, places.out)


def image_to_3d(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the small TripoSR."""
    bank = load_bank(recipe, places, device)
    vae = export.read_vae(places.vae, bank.objects.device)
    export.write_triposr(train_triposr.train(recipe, places, bank, vae, row=1), places.out)


def image_to_splats(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the small TripoSplat."""
    set_up(recipe, device)
    train_triposplat.make(recipe, places, places.vae, device, row=3)


def saliency(recipe: Recipe, places: Places, device: str) -> None:
    """Trains and exports the saliency network."""
    bank = load_bank(recipe, places, device).without_points()
    vae = export.read_vae(places.vae, bank.objects.device)
    export.write_saliency(train_saliency.train(recipe, places, bank, vae, row=2), places.out)


def scorer(recipe: Recipe, places: Places, device: str) -> None:
    """Makes clouds with all the others, on the CPU, and trains and exports the scorer."""
    if recipe.scorer_plan.clouds:
        train_scorer.make(recipe.scorer_plan, places, device, spare_cores())


Job = Callable[[Recipe, Places, str], None]

ROUNDS: tuple[tuple[Job, ...], ...] = (
    (autoencoder,),
    (text_to_image, image_to_3d, image_to_splats, saliency),
    (scorer,),
)
"""The autoencoder comes first: the others learn from its latents, or from pictures it redraws. The
scorer comes last: it learns from what the others make."""


def train_all(recipe: Recipe, places: Places, device: str) -> None:
    """Runs the rounds, the jobs of each side by side on one GPU, one after another on a CPU."""
    places.out.mkdir(parents=True, exist_ok=True)
    for jobs in ROUNDS:
        if device == "cpu":
            for job in jobs:
                job(recipe, places, device)
        else:
            _side_by_side(jobs, recipe, places, device)


def _side_by_side(jobs: tuple[Job, ...], recipe: Recipe, places: Places, device: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=job, args=(recipe, places, device)) for job in jobs]
    for process in processes:
        process.start()
    try:
        running = True
        while running:
            running = any(process.is_alive() for process in processes)
            failed = [job.__name__ for job, p in zip(jobs, processes, strict=True) if p.exitcode]
            if failed:
                raise SystemExit(f"training failed: {', '.join(failed)}; run again to resume")
            time.sleep(0.5)
    finally:
        for process in processes:
            process.terminate()
            process.join()
