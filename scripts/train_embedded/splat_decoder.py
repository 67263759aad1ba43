"""What the decoder of the small TripoSplat is asked for: cells and Gaussians on exact surfaces."""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation.lift.triposplat import SplatDecoder, TripoSplatConfig
from generation.lift.triposplat.attention import HeadNorm
from generation.lift.triposplat.gaussians import GaussianDecoder
from generation.lift.triposplat.octree import LatentAttention, OctreeDecoder
from scripts.train_embedded.surfaces import FLATNESS, Patches, Surfaces, disc_axis

_CELLS = 192
"""Cells of a solid that a step asks the octree about."""
_ANCHORS = 64
"""Points of a solid that a step asks the Gaussian network about."""

_ASTRAY = 0.025
"""Deviation of the way along the normal, in sides of the box, by which every other point is off the
surface, as those are that the octree places badly."""

_FINENESS = 0.012
"""Distance, in sides of the box, whose loss is 1."""

_SHARPNESS = 2.5
"""Gain of attention to the latent before training: points look at few tokens."""

_BASE_COLOUR = 0.28209479177387814
"""The spherical harmonic of degree 0."""


def build_decoder(config: TripoSplatConfig) -> SplatDecoder:
    """The decoder, whose Gaussians are flat and opaque before training, and remain opaque."""
    decoder = SplatDecoder(config)
    for module in decoder.modules():
        if isinstance(module, LatentAttention):
            for normed in (module.q_rms_norm, module.k_rms_norm):
                assert isinstance(normed, HeadNorm)
                nn.init.constant_(normed.gamma, _SHARPNESS)
    out, layout = decoder.gs.out_proj, config.gaussian.layout
    with torch.no_grad():
        out.weight *= 0.3
        out.bias.zero_()
        for name in ("_opacity", "_offset_scale"):
            out.weight[slice(*layout[name])] = 0
        out.bias[slice(*layout["_scaling"])].view(-1, 3)[:, 2] = math.log(FLATNESS)
    return decoder


def decoder_losses(
    decoder: SplatDecoder,
    solids: Surfaces,
    part_colours: Tensor,
    latents: Tensor,
    generator: torch.Generator,
) -> Mapping[str, Tensor]:
    """The losses of a batch of B solids.

    Args:
        decoder: In training.
        solids: What they are.
        part_colours: (B, P, 3) RGB.
        latents: (B, L, 16), with their errors.
        generator: Draws levels, cells and points.
    """
    octree = octree_loss(decoder.octree, solids.surface, latents, generator)
    count = solids.anchors.shape[1]
    chosen = torch.randperm(count, generator=generator, device=latents.device)[:_ANCHORS]
    exact = solids.anchors[:, chosen].float()
    per_point = decoder.config.gaussian.gaussians_per_point
    rows = (chosen[:, None] * per_point + torch.arange(per_point, device=chosen.device)).flatten()
    discs = solids.discs.map(lambda x: x[:, rows])
    away = torch.randn(exact.shape[:2], generator=generator, device=latents.device) * _ASTRAY
    away[:, ::2] = 0
    anchors = exact + away[..., None] * discs.normals[:, ::per_point].float() / 127
    moved = discs.positions.float() - (anchors - exact).repeat_interleave(per_point, 1)
    discs = replace(discs, positions=moved)
    found = gaussian_losses(decoder.gs, anchors, discs, solids.sizes, part_colours, latents)
    loss = octree + sum(found.values(), torch.zeros_like(octree))
    return {"loss": loss, "octree": octree, **found}


def octree_loss(
    network: OctreeDecoder, surface: Tensor, latents: Tensor, generator: torch.Generator
) -> Tensor:
    """How far the children's shares are from those of the surface's points (Kullback-Leibler).

    Args:
        network: In training.
        surface: (B, M, 3) float16 points in 0..1.
        latents: (B, L, 16).
        generator: Draws a level for each solid and cells of it, as often as points lie in them.
    """
    count, device = len(surface), surface.device
    level = torch.randint(network.config.levels, (count, 1), generator=generator, device=device)
    fine = 2 ** (level + 1)
    cells = (surface.float() * fine[..., None]).long().clamp(min=0)
    cells = torch.minimum(cells, fine[..., None] - 1)
    parents, children = cells // 2, ((cells % 2) * cells.new_tensor([1, 2, 4])).sum(-1)
    # Numbers of cells at the finest level are the largest.
    side = 2 ** (network.config.levels - 1)
    number = (parents * parents.new_tensor([side * side, side, 1])).sum(-1)
    shares = torch.zeros(count, side**3 * 8, device=device)
    shares.scatter_add_(1, 8 * number + children, torch.ones_like(number, dtype=torch.float32))
    drawn = torch.randint(surface.shape[1], (count, _CELLS), generator=generator, device=device)
    wanted = shares.view(count, -1, 8).gather(
        1, number.gather(1, drawn)[..., None].expand(-1, -1, 8)
    )
    wanted = wanted / wanted.sum(-1, keepdim=True)
    centres = (parents.gather(1, drawn[..., None].expand(-1, -1, 3)) + 0.5) / (fine[..., None] / 2)
    logits = network(centres, fine[:, 0], latents)
    return functional.kl_div(logits.log_softmax(-1), wanted, reduction="sum") / drawn.numel()


def gaussian_losses(
    network: GaussianDecoder,
    anchors: Tensor,
    discs: Patches,
    sizes: Tensor,
    part_colours: Tensor,
    latents: Tensor,
) -> dict[str, Tensor]:
    """Absolute errors of place, colour and size, and what is missing from 1 in the axis' cosine.

    Args:
        network: In training.
        anchors: (B, N, 3) points in 0..1.
        discs: (B, N x n): where their Gaussians belong, relative to the anchors.
        sizes: (B,) deviations along the surface.
        part_colours: (B, P, 3) RGB.
        latents: (B, L, 16).
    """
    features = network(anchors, latents)
    made = network.gaussians(anchors.flatten(0, 1), features.flatten(0, 1))
    per_point = network.config.gaussians_per_point
    places = anchors.repeat_interleave(per_point, 1) + discs.positions.float() - 0.5
    colours = (discs.colours(part_colours) - 0.5) / _BASE_COLOUR
    w, x, y, z = functional.normalize(made.rotations, dim=-1).unbind(-1)
    axes = torch.stack((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)), dim=-1)
    wanted = disc_axis(discs.normals).flatten(0, 1)
    shape = sizes.new_tensor([1.0, 1.0, FLATNESS])
    size = (sizes[:, None] * shape).log().repeat_interleave(places.shape[1], 0)
    return {
        "place": (made.positions - places.flatten(0, 1)).abs().mean() / _FINENESS,
        "colour": (made.colors_dc - colours.flatten(0, 1)).abs().mean(),
        "axis": (1 - (axes * wanted).sum(-1)).mean(),
        "size": (made.scales.log() - size).abs().mean(),
    }
