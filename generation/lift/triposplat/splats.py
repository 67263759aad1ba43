"""The decoder's Gaussians as a finished cloud in the subnet's frame."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.errors import GenerationError
from generation.lift.triposplat.gaussians import PointGaussians
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.scoring.validity import MIN_GAUSSIANS

_INVISIBLE = 0.5 / 255
"""SPZ rounds a smaller opacity to 0."""

_GRID = 32
"""Cells per axis in which parts of an object are told apart: an empty cell separates them."""

_SMALLEST_PART = 0.005
"""Share of the visible Gaussians; a smaller part that floats by itself is left out."""

_GROWN_AT_ONCE = 8


@torch.inference_mode()
def to_gaussians(made: PointGaussians) -> GaussianTensors:
    """Finishes a cloud: what cannot be seen and what floats is left out, the rest is framed.

    The subnet has y up and looks from +z with +x to the right. So (x, y, z) becomes (y, z, x), and
    the local axes of a Gaussian are renamed in the same way: its scales and the vector part of its
    quaternion move along, and w remains, which SPZ, rebuilding w from the rest, stores most
    precisely where it is large. The cloud is centred per axis on the box of its centres, whose
    largest side becomes `LARGEST_SIDE`.

    Args:
        made: At least one Gaussian, of one object.

    Returns:
        At most as many, in their order. Rotations are normalised and have w >= 0.

    Raises:
        GenerationError: A number is not finite, nothing can be seen, or fewer Gaussians are left
            than a validator accepts.
    """
    flat = (made.positions, made.scales, made.rotations, made.colors_dc)
    finite = torch.cat([*(x.flatten() for x in flat), made.opacity_logits]).isfinite().all()
    kept = made.opacity_logits >= math.log(_INVISIBLE / (1 - _INVISIBLE))
    kept &= ~_floating(made.positions, kept)
    index = kept.nonzero()[:, 0]
    total = len(kept)
    if not finite:
        raise GenerationError("the decoder made numbers that are not finite")
    if not len(index) or len(index) < MIN_GAUSSIANS <= total:
        raise GenerationError(
            f"{len(index)} of {total} Gaussians can be seen, a validator wants {MIN_GAUSSIANS}"
        )
    positions = made.positions[index]
    low, high = torch.aminmax(positions, dim=0)
    scale = LARGEST_SIDE / (high - low).max().clamp_min(1e-6)
    turned = F.normalize(made.rotations[index], dim=-1)
    w, turn = turned[:, :1], turned[:, 1:]
    turn = torch.where(w < 0, -turn, turn)
    return GaussianTensors(
        positions=_to_subnet((positions - (low + high) / 2) * scale),
        log_scales=_to_subnet((made.scales[index] * scale).log()),
        rotations=torch.cat([w.abs(), _to_subnet(turn)], dim=-1),
        opacity_logits=made.opacity_logits[index],
        colors_dc=made.colors_dc[index],
    )


def _floating(positions: Tensor, visible: Tensor) -> Tensor:
    """Which Gaussians (G,) belong to a small part that no visible Gaussian ties to the rest.

    Occupied cells that touch, if only at a corner, belong to one part; every part is found by its
    highest cell number, which spreads over it.
    """
    places = ((positions + 0.5) * _GRID).nan_to_num(0).long().clamp(0, _GRID - 1)
    cells = (places[:, 0] * _GRID + places[:, 1]) * _GRID + places[:, 2]
    weight = torch.bincount(cells, visible.float(), minlength=_GRID**3)
    occupied = (weight > 0).float().view(1, 1, _GRID, _GRID, _GRID)
    numbers = torch.arange(1.0, _GRID**3 + 1, device=cells.device).view_as(occupied)
    parts = numbers * occupied
    before = torch.zeros_like(parts)
    while not torch.equal(parts, before):
        before = parts
        for _ in range(_GROWN_AT_ONCE):
            parts = F.max_pool3d(parts, 3, stride=1, padding=1) * occupied
    part = parts.flatten().long()
    size = torch.zeros(_GRID**3 + 1, device=cells.device).index_add_(0, part, weight.float())
    return (size < torch.minimum(_SMALLEST_PART * weight.sum(), size[1:].max()))[part][cells]


def _to_subnet(vectors: Tensor) -> Tensor:
    return vectors.roll(-1, dims=-1)
