"""Untrained weights whose points form one solid object: for tests, demos and timing."""

import torch
from torch import nn

from generation.lift.triposplat import PUBLIC, SplatDecoder, TripoSplat, TripoSplatConfig
from generation.lift.triposplat.encoder_config import PUBLIC_ENCODERS, EncoderConfig
from generation.lift.triposplat.features import PictureEncoders, build_dino, build_vae
from generation.lift.triposplat.octree import OctreeBlock, OctreeDecoder

_PULL = 1.2
"""How strongly points are drawn towards the middle: their spread is a sixth of the box then."""
_NOISE = 0.3
"""Standard deviation of the rest of a child's logit, which follows from the latent."""
_OPACITY = 4.0
"""Added to the logits of opacities, which begin at that of 0.1."""
_FEATURES = 0.3
"""Standard deviation of the Gaussians' features."""


@torch.no_grad()
def untrained(
    config: TripoSplatConfig = PUBLIC,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TripoSplat:
    """Builds a model with random weights, in eval mode and without gradients.

    Three channels of the octree's network carry where a cell lies to the logits of its children,
    past the blocks: the nearer the middle a child is, the more points it gets. Everything else is
    noise that depends on the picture.

    Args:
        config: Shapes and constants; its octree must have a width of at least 12.
        seed: The same seed, device and config give the same weights.
        device: Where the weights are drawn and stay.
        dtype: Their number format.
    """
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        model = TripoSplat(config)
        _pull_to_the_middle(model.decoder.octree)
        _show(model.decoder)
    return model.to(device, dtype).requires_grad_(False).eval()


def untrained_encoders(
    config: EncoderConfig = PUBLIC_ENCODERS,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PictureEncoders:
    """Builds the encoders of a picture with the random weights of their libraries."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        dino, vae = build_dino(config.dinov3), build_vae(config.vae)
    rotary, norm = dino.rope_embeddings, vae.bn
    for network in (dino, vae):
        network.to(device, dtype).requires_grad_(False).eval()
    # As `PictureEncoders.from_pretrained` has them.
    dino.rope_embeddings = type(rotary)(dino.config).to(device).eval()
    norm.float()
    return PictureEncoders(dino, vae)


def _pull_to_the_middle(octree: OctreeDecoder) -> None:
    width = octree.config.width
    per_axis = width // 6
    first = octree.input_layer
    first.weight[:3] = 0
    first.bias[:3] = 0
    octree.in_proj.weight *= 0.1
    octree.in_proj.bias.zero_()
    for axis in range(3):
        # The cosine of pi x, which falls from 1 to -1: sines come first, axis by axis.
        first.weight[axis, 2 * axis * per_axis + per_axis] = 1
    for block in octree.blocks:
        assert isinstance(block, OctreeBlock)
        for layer in (block.cross_attn.to_out, block.mlp.mlp[-1]):
            assert isinstance(layer, nn.Linear)
            layer.weight[:3] = 0
            layer.bias[:3] = 0
    last = octree.out_proj
    nn.init.normal_(last.weight, std=_NOISE * width**-0.5)
    last.bias.zero_()
    for child in range(8):
        for axis in range(3):
            last.weight[child, axis] = _PULL * (0.5 if child >> axis & 1 else -0.5)


def _show(decoder: SplatDecoder) -> None:
    last = decoder.gs.out_proj
    nn.init.normal_(last.weight, std=_FEATURES * decoder.config.gaussian.width**-0.5)
    last.bias.zero_()
    first, end = decoder.config.gaussian.layout["_opacity"]
    last.bias[first:end] = _OPACITY
