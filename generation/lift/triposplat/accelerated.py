"""The networks made fast, in place: attention, compiled blocks, CUDA graphs, layers of 8 bits.

Every function that is recorded has fixed shapes. The octree's levels have not: their cells are
filled up to a few sizes, each with a graph of its own. What lies between the networks, drawing
points above all, is computed eagerly.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from generation.acceleration.compiling import Compiled
from generation.acceleration.eight_bit import Float8Linear, quantise
from generation.acceleration.graphs import Captured, GraphPool
from generation.lift.triposplat.decoder import SplatDecoder
from generation.lift.triposplat.fast_attention import best_attention
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.flow import FlowTransformer, RotaryAttention
from generation.lift.triposplat.gaussians import PointAttention
from generation.lift.triposplat.model import TripoSplat
from generation.lift.triposplat.octree import LatentAttention

Backend = str | Callable[..., Any]
"""What `torch.compile` compiles with."""

_FEWEST_CELLS = 512
_MOST_SIZES = 8
"""Sizes of clouds and of levels that have graphs; the public model has four and five."""


def accelerate(
    model: TripoSplat, encoders: PictureEncoders, points: int, *, backend: Backend = "inductor"
) -> None:
    """Compiles the networks and records them, both at the first call of a shape.

    What cannot be compiled or recorded runs eagerly, after a warning. The graphs share their
    memory, so only one thread may use the networks.

    Args:
        model: Changed in place.
        encoders: On the same device; changed in place.
        points: The most that a cloud is decoded from.
        backend: What `torch.compile` compiles with.
    """
    attend_fast(model)
    pool = GraphPool()
    accelerate_flow(model.flow, pool, backend)
    accelerate_decoder(model.decoder, points, pool, backend)
    accelerate_encoders(encoders, pool, backend)


def accelerate_flow(flow: FlowTransformer, pool: GraphPool, backend: Backend) -> None:
    """One graph of a guided step; the condition's tokens have another."""
    name = "TripoSplat's flow"
    blocks = (*flow.noise_refiner, *flow.blocks)
    velocities = Compiled(name, flow.velocities, blocks, backend=backend)
    flow.velocities = Captured(name, velocities, pool=pool)  # type: ignore[assignment, method-assign]
    # Two blocks, once a picture: compiling them takes longer than it saves.
    condition = Captured("TripoSplat's condition", flow.condition, pool=pool)
    flow.condition = condition  # type: ignore[method-assign]


def accelerate_decoder(
    decoder: SplatDecoder, points: int, pool: GraphPool, backend: Backend
) -> None:
    """A graph for each size of a level, all at the first call, and one for each count of points."""
    octree, gs = decoder.octree, decoder.gs
    name = "TripoSplat's octree"
    likely = Compiled(name, octree.forward, octree.blocks, backend=backend, dynamic=True)
    recorded = Captured(name, likely, pool=pool, limit=_MOST_SIZES)
    octree.forward = filled_up(recorded, points)  # type: ignore[method-assign]
    name = "TripoSplat's Gaussians"
    features = Compiled(name, gs.forward, gs.blocks, backend=backend, dynamic=True)
    gs.forward = Captured(  # type: ignore[method-assign]
        name, features, pool=pool, limit=_MOST_SIZES
    )


def accelerate_encoders(encoders: PictureEncoders, pool: GraphPool, backend: Backend) -> None:
    """A graph of each encoder."""
    name = "DINOv3"
    dino = Compiled(name, encoders.dino_tokens, encoders.dino.model.layer, backend=backend)
    encoders.dino_tokens = Captured(name, dino, pool=pool)  # type: ignore[method-assign]
    name = "TripoSplat's VAE"
    vae = Compiled(name, encoders.vae_tokens, (encoders.vae.encoder,), backend=backend)
    encoders.vae_tokens = Captured(name, vae, pool=pool)  # type: ignore[method-assign]


def attend_fast(model: TripoSplat) -> None:
    """Lets all blocks attend as fast as the device can, in place.

    The context refiners stay as they are: the empty condition is one token, which not every kernel
    takes.
    """
    flow, octree, gs = model.flow, model.decoder.octree, model.decoder.gs
    for config, blocks in (
        *((flow.config, flow.noise_refiner), (flow.config, flow.blocks)),
        *((octree.config, octree.blocks), (gs.config, gs.blocks)),
    ):
        best = best_attention(config.heads, config.head_dim, flow.device, flow.dtype)
        for module in blocks.modules():
            if isinstance(module, RotaryAttention | LatentAttention | PointAttention):
                module.attend = best


def hold_in_eight_bits(model: TripoSplat) -> None:
    """Replaces the large linear layers of the blocks, in place.

    What places tokens, embeds them or is last keeps its 16 bits, and so do the context refiners,
    which run once a picture.
    """
    for block in (
        *(*model.flow.noise_refiner, *model.flow.blocks),
        *(*model.decoder.octree.blocks, *model.decoder.gs.blocks),
    ):
        quantise(block, Float8Linear, device=model.flow.device)


def filled_up(likely: Callable[..., Tensor], points: int) -> Callable[..., Tensor]:
    """Lets the octree network see few numbers of cells: powers of two.

    How many cells a level has depends on the picture. So the first call prepares for all sizes, and
    no later one has to.

    Args:
        likely: What `OctreeDecoder.forward` does. Cells do not look at each other.
        points: The most cells that a level has; there may be more, which are prepared for later.
    """
    unprepared = [_size_for(points)]
    while unprepared[-1] > _FEWEST_CELLS:
        unprepared.append(unprepared[-1] // 2)

    def forward(cells: Tensor, resolution: Tensor, latent: Tensor) -> Tensor:
        while unprepared:
            size = unprepared[-1]
            likely(cells.new_zeros(1, size, 3), resolution, latent)
            unprepared.pop()
        count = cells.shape[1]
        filled = F.pad(cells, (0, 0, 0, _size_for(count) - count))
        return likely(filled, resolution, latent)[:, :count]

    return forward


def _size_for(cells: int) -> int:
    return max(_FEWEST_CELLS, 1 << (cells - 1).bit_length())
