"""The autoencoder of the small FLUX: 128 x 128 pictures to 16 x 16 latents of 16 channels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from scripts.train_embedded.bank import Bank
from scripts.train_embedded.loop import Training
from scripts.train_embedded.pictures import Batch
from scripts.train_embedded.recipe import Places, Recipe
from scripts.train_embedded.world import paint_table

LATENT_CHANNELS = 16
_KL = 1e-4
_LATENT_NOISE = 0.08
"""The decoder learns with this share of the latents' deviation as noise, so that it forgives the
transformer's errors."""


def build(recipe: Recipe) -> Any:
    """An AutoencoderKL in FLUX's layout; four blocks, since their number fixes the factor 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=recipe.flux.vae_channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train(recipe: Recipe, places: Places, bank: Bank, row: int = 0) -> Any:
    """Trains it, measures its latents and returns it with `scaling_factor` and `shift_factor` set.

    Source: latent diffusion (Rombach et al. 2022), without its adversarial and perceptual losses.
    """
    device = bank.objects.device
    torch.manual_seed(recipe.vae_plan.seed)
    paints = paint_table(device)
    network = build(recipe).to(device, memory_format=torch.channels_last)
    training = Training("vae", network, recipe.vae_plan, places.state, row)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        images = Batch.draw(bank, recipe.vae_plan.batch, paints, generator).images() * 2 - 1
        with recipe.autocast(device):
            posterior = network.encode(images).latent_dist
            latents = posterior.mean + posterior.std * _normal(posterior.mean, generator)
            noise = _LATENT_NOISE * latents.detach().std() * _normal(latents, generator)
            decoded = network.decode(latents + noise).sample
        decoded = decoded.float()
        colour = functional.l1_loss(decoded, images) + functional.mse_loss(decoded, images)
        edges = sum(
            functional.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis)) for axis in (2, 3)
        )
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return {"loss": colour + edges + _KL * kl, "colour": colour, "kl": kl}

    vae: Any = training.run(step)
    _measure(vae, bank, paints)
    return vae


@torch.no_grad()
def redraw(vae: Any, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (V, 3, S, S) in 0..1 as FLUX shows them, with the errors that a transformer makes."""
    latents = vae.encode(images * 2 - 1).latent_dist.mean
    noise = _LATENT_NOISE * latents.std() * _normal(latents, generator)
    decoded: Tensor = vae.decode(latents + noise).sample
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


@torch.no_grad()
def _measure(vae: Any, bank: Bank, paints: Tensor) -> None:
    generator = torch.Generator(bank.objects.device).manual_seed(1)
    images = Batch.draw(bank, min(512, 16 * len(bank)), paints, generator).images()
    pieces = torch.split(images * 2 - 1, 64)
    means = torch.cat([vae.encode(piece).latent_dist.mean for piece in pieces])
    vae.register_to_config(scaling_factor=1 / float(means.std()), shift_factor=float(means.mean()))
