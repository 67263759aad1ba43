"""FLUX's denoising loop and decoder as one function: what one CUDA graph per picture would record.

The miner records every denoising step alone, so that the number of steps is free and a picture can
stop between two. Part `picture` of `scripts.benchmark parts` measures what that costs.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from generation.pictures.drawing import places, unpack


def denoise_and_decode(
    pipeline: Any, sigmas: tuple[float, ...], latents: Tensor, words: Tensor, pooled: Tensor
) -> Tensor:
    """Follows the flow from noise to a picture by Euler's method.

    Args:
        pipeline: A `FluxPipeline` without guidance.
        sigmas: Noise levels from 1 to 0.
        latents: (1, S * S, C) packed noise.
        words: T5's hidden states.
        pooled: CLIP's pooled output.

    Returns:
        (16 S, 16 S, 3) uint8 RGB.
    """
    side = int(latents.shape[1] ** 0.5)
    for sigma, following in pairwise(sigmas):
        flow = pipeline.transformer(
            hidden_states=latents,
            timestep=words.new_full((1,), 1000 * sigma) / 1000,
            pooled_projections=pooled,
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=places(side, words.device).to(words.dtype),
            return_dict=False,
        )[0]
        latents = (latents.float() + (following - sigma) * flow).to(latents.dtype)
    vae = pipeline.vae
    blocks = unpack(latents) / vae.config.scaling_factor + vae.config.shift_factor
    picture = vae.decode(blocks, return_dict=False)[0][0]
    bright = (picture * 0.5 + 0.5).clamp(0, 1).float()
    pixels: Tensor = (bright * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).contiguous()
