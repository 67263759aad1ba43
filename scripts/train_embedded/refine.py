"""Trains the decoder of a finished small FLUX further, with everything else held still.

The transformer only knows the encoder's latents, so a better decoder sharpens its pictures without
touching it. Needs no GPU.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scripts.train_embedded.bank import Bank
from scripts.train_embedded.export import FLUX
from scripts.train_embedded.loop import Plan, Training
from scripts.train_embedded.pictures import Batch
from scripts.train_embedded.plot import plot_losses
from scripts.train_embedded.shading import halve, over
from scripts.train_embedded.world import paint_table

PLAN = Plan(steps=3000, batch=4, rate=4e-4, minutes=14.0, average=0.99, decay=0.0, seed=4_000_000)
_LATENT_NOISE = 0.05
_VIEWS, _VIEW_SEED = 2, 5


def refine(vae: Any, bank: Bank, plan: Plan, state: Path) -> None:
    """Trains `vae.decoder` in place on what `vae.encoder` makes of the bank's views.

    Args:
        vae: An AutoencoderKL, float32, on the bank's device.
        bank: Views at twice the size of the pictures.
        plan: How long and how fast.
        state: Where the checkpoint and the losses go.
    """
    paints = paint_table(bank.objects.device)
    decoder = vae.decoder.to(memory_format=torch.channels_last)
    training = Training("decoder", decoder, plan, state)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        images = moved_images(Batch.draw(bank, plan.batch, paints, generator), generator) * 2 - 1
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
            noise = torch.randn(latents.shape, generator=generator, device=latents.device)
            latents += _LATENT_NOISE * latents.std() * noise
        decoded = training.module(latents.to(memory_format=torch.channels_last))
        colour = functional.l1_loss(decoded, images)
        edges = sum(
            functional.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis)) for axis in (2, 3)
        )
        return {"loss": colour + edges, "colour": colour}

    vae.decoder = training.run(step)


def moved_images(batch: Batch, generator: torch.Generator) -> Tensor:
    """Pictures (V, 3, S/2, S/2) with the objects turned, scaled, shifted and mirrored a little.

    A decoder works locally, so a few views moved about teach it as much as many.
    """
    count = len(batch.bank)
    draw = torch.rand(count, 5, generator=generator, device=generator.device) * 2 - 1
    angle, scale = 0.2 * draw[:, 0], 1.05 + 0.15 * draw[:, 1]
    mirror = torch.where(draw[:, 4] < 0, -1.0, 1.0)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = (
        torch.stack((cos * mirror, -sin, 0.06 * draw[:, 2]), dim=-1),
        torch.stack((sin * mirror, cos, 0.06 * draw[:, 3]), dim=-1),
    )
    grid = functional.affine_grid(
        torch.stack(rows, dim=1), list(batch.rgba.shape), align_corners=False
    )
    moved = functional.grid_sample(batch.rgba, grid, align_corners=False)
    return over(halve(moved), batch.backgrounds)


def main() -> None:
    """Reads the command line, refines, writes the autoencoder back."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.refine", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded"))
    parser.add_argument("--minutes", type=float, default=PLAN.minutes)
    arguments = parser.parse_args()
    from diffusers import AutoencoderKL

    folder = arguments.models / FLUX / "vae"
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    file = arguments.state / "refine-world.pt"
    if not file.is_file():
        device = torch.device("cpu")
        Bank.draw(_VIEWS, 256, 2048, 0.87, seed=_VIEW_SEED, device=device).save(file)
    bank = Bank.load(file, torch.device("cpu")).without_points()
    refine(vae, bank, replace(PLAN, minutes=arguments.minutes), arguments.state)
    vae.to(torch.float16, memory_format=torch.contiguous_format).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)
    plot_losses(arguments.state, arguments.state / "losses.png")


if __name__ == "__main__":
    main()
