"""zero123 with random weights, at full size or any other: no downloads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from generation.lift.dreamgaussian.zero123 import CameraProjection, Zero123
from generation.quiet import quiet_libraries
from scripts.benchmarks.random_weights import fill


@dataclass(frozen=True)
class Zero123Sizes:
    """Shapes of the networks, in the words of their libraries' configs.

    Attributes:
        unet: `UNet2DConditionModel`; all its levels but the lowest attend to the context.
        vae: `AutoencoderKL`.
        clip: `CLIPVisionConfig`.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    clip: Mapping[str, Any]


FULL_ZERO123 = Zero123Sizes(
    unet={
        "sample_size": 32,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 256,
        "scaling_factor": 0.18215,
    },
    clip={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    },
)
"""The UNet of Stable Diffusion's image variations with 8 input channels, its autoencoder, CLIP
ViT-L/14."""


def untrained_zero123(
    sizes: Zero123Sizes, *, device: torch.device, dtype: torch.dtype, scale: float = 5.0
) -> Zero123:
    """Builds the guidance; each weight follows from its name alone.

    Args:
        sizes: Shapes of the networks.
        device: Where the weights are drawn and stay.
        dtype: Their number format.
        scale: Of classifier-free guidance.
    """
    names = ("unet", "vae", "image_encoder")
    empty = zip(empty_networks(sizes, device), names, strict=True)
    unet, vae, encoder = (fill(network, name, device, dtype) for network, name in empty)
    context = int(sizes.unet["cross_attention_dim"])
    with device:
        projection = CameraProjection(int(sizes.clip["projection_dim"]) + 4, context).to(dtype)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    size = int(sizes.unet["sample_size"]) * 2 ** (len(sizes.vae["block_out_channels"]) - 1)
    alphas = (1 - betas).cumprod(0)
    return Zero123(unet, vae, encoder, projection, alphas, size=size, scale=scale)


def empty_networks(
    sizes: Zero123Sizes, device: torch.device
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Builds UNet, autoencoder and CLIP's image encoder, as their libraries begin them."""
    levels, stages = len(sizes.unet["block_out_channels"]), len(sizes.vae["block_out_channels"])
    with quiet_libraries():
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        # On the device, since they have buffers that no checkpoint holds.
        with device:
            unet = UNet2DConditionModel(
                **sizes.unet,
                down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
                up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            )
            vae = AutoencoderKL(
                **sizes.vae,
                down_block_types=("DownEncoderBlock2D",) * stages,
                up_block_types=("UpDecoderBlock2D",) * stages,
            )
            clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes.clip))
    return unet, vae, clip
