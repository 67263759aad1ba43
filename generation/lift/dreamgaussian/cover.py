"""Few large Gaussians to many flat ones: discs on the surface of their density.

On a CPU a dream has too few Gaussians for a validator, and they are as thick as the parts that they
show. DreamGaussian takes the surface where the Gaussians' density has a certain value (Tang et al.
2024, section 3.3, where it becomes a mesh). Here rays from the centres of the Gaussians find that
surface, and it is covered with discs.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.errors import GenerationError
from generation.lift.triposr.splats import disc_rotations
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.differentiable import rotation_matrices
from generation.scoring.validity import MIN_GAUSSIANS

_LEVEL = 0.5
"""Density of the surface: the sum of what is left of the Gaussians' opacities at a place."""
_DENSE, _DENSE_SHARE = 0.5, 0.9
"""Where Gaussians stay faint, as those of thin objects do, the surface lies at this part of the
density that this share of the centres stays under. The largest density may be that of one place."""
_SEEN, _SEEN_PART = 0.02, 0.5
"""Opacity under which a Gaussian does not count; this part of the largest one, if that is less."""
_NOTHING = 1e-6
"""Opacity under which the largest one shows nothing, and says nothing of a surface."""

_NODES, _FINEST = 72, 0.6
"""Of the lattice on which the density is read: how many there are at most along the longest side of
the means' box, and how far apart they are at least, in standard deviations of most Gaussians."""
_EXTENT = 2.7
"""How far a Gaussian reaches, in standard deviations."""
_LARGEST = 12
"""How far it reaches at most, in steps of the lattice."""
_AT_ONCE = 500_000
"""Nodes that Gaussians are added to at a time."""

_ALL_RAYS = 200_000
_STRIDES, _BISECTIONS = 24, 5
_STRIDE = 0.75
"""Of rays, in steps of the lattice."""

_CELLS, _MOST_CELLS = 50, 99_999
"""Of the surface's longest side: in which its area is measured, and how many there are at most."""
_SIGMA, _THIN = 0.6, 0.3
"""Of a disc, in its plane as a share of the spacing, and across as a share of that."""
_OPACITY = 0.95


class _Lattice:
    """Density and colours of Gaussians on a lattice around them.

    Args:
        own: Parameters of those that can be seen.

    Attributes:
        low: (3,) where its first node is.
        step: Between nodes.
    """

    def __init__(self, own: Mapping[str, Tensor]) -> None:
        means, scales = own["means"], own["scales"].exp()
        low, high = torch.aminmax(means, dim=0)
        usual = float(scales.amax(-1).median())
        self.step = max(float((high - low).max().clamp_min(1e-3)) / _NODES, _FINEST * usual)
        self.low = low - (_LARGEST + 1) * self.step
        nodes = _NODES + 2 * (_LARGEST + 1) + 1
        whiten = (rotation_matrices(own["quats"]) / scales[:, None]).mT
        reach = (_EXTENT * scales.amax(-1) / self.step).ceil().clamp(1, _LARGEST).int()
        nearest = ((means - self.low) / self.step).round()
        values = torch.zeros(nodes**3, 4)
        opacities = own["opacities"].sigmoid()
        colours1 = F.pad(own["colors"], (1, 0), value=1.0)
        for width in sorted(set(reach.tolist())):
            line = torch.arange(-width, width + 1, dtype=torch.float32)
            around = torch.cartesian_prod(line, line, line)
            for chosen in (reach == width).nonzero()[:, 0].split(_AT_ONCE // len(around)):
                places = nearest[chosen, None] + around
                white = self.low + places * self.step - means[chosen, None]
                white = white @ whiten[chosen].mT
                share = opacities[chosen, None] * torch.exp(-0.5 * white.square().sum(-1))
                x, y, z = places.long().unbind(-1)
                added = share[..., None] * colours1[chosen, None]
                values.index_add_(0, ((x * nodes + y) * nodes + z).flatten(), added.flatten(0, 1))
        self._values = values.T.view(1, 4, nodes, nodes, nodes)
        self._side = (nodes - 1) * self.step

    def at(self, points: Tensor) -> Tensor:
        """Density, and colour coefficients times it, at points (M, 3): (M, 4)."""
        places = (points - self.low) / self._side * 2 - 1
        # The last coordinate comes first in `grid_sample`.
        found = F.grid_sample(self._values, places.flip(-1)[None, None, None], align_corners=True)
        return found[0, :, 0, 0].T

    def downhill(self, points: Tensor) -> Tensor:
        """Unit vectors (M, 3) in which the density falls."""
        ways = torch.eye(3) * self.step
        slopes = [self.at(points - way)[:, 0] - self.at(points + way)[:, 0] for way in ways]
        return F.normalize(torch.stack(slopes, dim=-1), dim=-1)


@torch.no_grad()
def cover(parameters: Mapping[str, Tensor], most: int, seed: int = 0) -> GaussianTensors:
    """Covers the surface of Gaussians with discs, centred and as large as finished clouds are.

    Args:
        parameters: Of `TrainedGaussians`; at most some thousands of Gaussians.
        most: Number of discs, at least `MIN_GAUSSIANS`.
        seed: Of the rays.

    Returns:
        The discs, on the device of the parameters.

    Raises:
        GenerationError: Nothing is left to be seen, or a surface too small for as many discs as a
            validator wants.
    """
    own = {name: x.detach().cpu() for name, x in parameters.items()}
    opacities = own["opacities"].sigmoid()
    largest = float(opacities.max())
    if largest < _NOTHING:
        raise GenerationError("the optimisation left nothing that can be seen")
    seen = opacities >= min(_SEEN, _SEEN_PART * largest)
    own = {name: x[seen] for name, x in own.items()}
    generator = torch.Generator().manual_seed(seed)
    lattice = _Lattice(own)
    points = _surface(lattice, own["means"], generator)
    if len(points) >= MIN_GAUSSIANS:
        points = _evenly(points, most)
    if len(points) < MIN_GAUSSIANS:
        raise GenerationError("the optimisation left no surface that could be covered")
    values = lattice.at(points)
    low, high = torch.aminmax(points, dim=0)
    scale = LARGEST_SIDE / (high - low).max().clamp_min(1e-6)
    sigma = _SIGMA * math.sqrt(_cells(points, _CELLS)[0] / len(points)) * LARGEST_SIDE / _CELLS
    log_scales = torch.tensor([sigma, sigma, _THIN * sigma]).log().expand(len(points), 3)
    discs = GaussianTensors(
        positions=(points - (low + high) / 2) * scale,
        log_scales=log_scales.contiguous(),
        rotations=disc_rotations(lattice.downhill(points)),
        opacity_logits=torch.full((len(points),), math.log(_OPACITY / (1 - _OPACITY))),
        colors_dc=values[:, 1:] / values[:, :1].clamp_min(1e-6),
    )
    device = parameters["means"].device
    return GaussianTensors(*(tensor.to(device) for tensor in discs.tensors()))


def _surface(lattice: _Lattice, centres: Tensor, generator: torch.Generator) -> Tensor:
    """Where rays from centres (N, 3) first leave the dense part, (M, 3)."""
    density = lattice.at(centres)[:, 0]
    level = min(_LEVEL, _DENSE * float(density.quantile(_DENSE_SHARE)))
    start = centres[density >= level]
    start = start.repeat(-(-_ALL_RAYS // len(start)), 1)
    rays = F.normalize(torch.randn(start.shape, generator=generator), dim=-1)
    length = _STRIDE * lattice.step
    near, going = torch.zeros(len(start)), torch.arange(len(start))
    for _ in range(_STRIDES):
        ahead = start[going] + (near[going, None] + length) * rays[going]
        going = going[lattice.at(ahead)[:, 0] >= level]
        near[going] += length
    left = torch.ones(len(start), dtype=torch.bool)
    left[going] = False
    start, rays, near = start[left], rays[left], near[left]
    far = near + length
    for _ in range(_BISECTIONS):
        middle = (near + far) / 2
        within = lattice.at(start + middle[:, None] * rays)[:, 0] >= level
        near, far = torch.where(within, middle, near), torch.where(within, far, middle)
    return start + near[:, None] * rays


def _evenly(points: Tensor, most: int) -> Tensor:
    """At most `most` of the points (M, 3), evenly spread: many of them lie close together."""
    per_side = _CELLS * math.sqrt(most / _cells(points, _CELLS)[0])
    while True:
        count, cell = _cells(points, per_side)
        if count >= MIN_GAUSSIANS or per_side >= _MOST_CELLS:
            break
        per_side = min(1.2 * per_side, _MOST_CELLS)
    first = torch.full((count,), len(points)).scatter_reduce(
        0, cell, torch.arange(len(points)), reduce="amin"
    )
    # Points are in random order, but cells are not.
    return points[first.sort().values[:most]]


def _cells(points: Tensor, per_side: float) -> tuple[int, Tensor]:
    """How many cells points (M, 3) lie in, and the number of the cell of each, (M,)."""
    low, high = torch.aminmax(points, dim=0)
    place = ((points - low) / (high - low).max().clamp_min(1e-6) * per_side).long()
    key = (place[:, 0] * 100_000 + place[:, 1]) * 100_000 + place[:, 2]
    cells, index = torch.unique(key, return_inverse=True)
    return len(cells), index
