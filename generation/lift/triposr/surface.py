"""Points on the density crossing of a TripoSR scene, found on the device.

A coarse lattice says which cells the surface passes through; only those are subdivided and asked
again, so that a 400 million point lattice costs about a million queries. Candidates are the
crossings on the fine lattice's edges; an even subset of them, moved onto the level, is the sample.

On a GPU the time goes into launching kernels and waiting for them, so the work is done in few
operations, and few of them make the host wait.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from generation.acceleration.streams import to_host
from generation.errors import GenerationError
from generation.lift.triposr import TripoSR

_MAX_SUBDIVISION = 6
_CANDIDATES_PER_SAMPLE = 2.0
_REFINEMENTS = 2
_BLOCKS = 32
"""Blocks per side in which bodies are told apart; touching blocks belong together."""
_NEAR_MISS = 0.25
"""A cell whose corners agree in sign is still searched if the level lies within this share of its
corners' range: a curved surface can bulge through a face and leave all corners on one side."""
_NEAR_MISSES_IN_A_ROW = 2
_KEY_BITS = 20
_AREA_UNITS = 65536

EMPTY = -70.0
"""Log-density of a place that a floater was taken out of."""


@dataclass(frozen=True)
class Surface:
    """An even sample of a closed or open surface, in TripoSR's world frame.

    Attributes:
        points: (N, 3) float32, on the level set.
        normals: (N, 3) float32 unit vectors towards lower density.
        area: () float64 surface area in square world units, estimated from the fine lattice.
    """

    points: Tensor
    normals: Tensor
    area: Tensor

    @property
    def spacing(self) -> Tensor:
        """Side of the square that one sample stands for, in world units; () float32."""
        return (self.area / len(self.points)).sqrt().float()


def sample_surface(
    model: TripoSR,
    scene_code: Tensor,
    *,
    count: int,
    threshold: float,
    resolution: int,
    min_component: float,
    seed: int,
) -> Surface:
    """Samples the surface `density == threshold` evenly.

    Args:
        model: The network whose decoder reads `scene_code`.
        scene_code: (3, C, H, W) triplane.
        count: Most points to return; fewer come back only from a tiny surface.
        threshold: Density of the surface, on the activated scale (upstream's 25).
        resolution: Coarse lattice points per side. Features thinner than
            2 * radius / (resolution - 1) can be missed.
        min_component: Connected bodies with less than this share of the largest one's volume are
            floaters, and left out.
        seed: Shifts which candidates are taken; the same seed gives the same sample.

    Raises:
        GenerationError: The density is not finite, or nowhere or everywhere above the threshold.
    """
    level = math.log(threshold)
    coarse = log_density_lattice(model, scene_code, resolution, threshold)
    coarse = without_floaters(coarse, level, min_component)
    cells = active_cells(coarse, level)
    subdivision = math.ceil(math.sqrt(_CANDIDATES_PER_SAMPLE * count / max(1, len(cells))))
    subdivision = min(max(1, subdivision), _MAX_SUBDIVISION)

    step = 2 * model.radius / ((resolution - 1) * subdivision)
    edges = _crossed_edges(model, scene_code, cells, subdivision, step, level)
    if len(edges.start) == 0:
        raise GenerationError("the density field's surface is too thin to be sampled")
    picked, area = _pick_evenly(edges.crossings(), coarse, model.radius, count, seed)
    points = _solve_crossings(model, scene_code, edges[picked], level)
    normals = density_normals(model, scene_code, points, step)
    return Surface(points, normals, area * step**2)


def density_normals(model: TripoSR, scene_code: Tensor, points: Tensor, step: float) -> Tensor:
    """(N, 3) unit vectors towards lower density, by central differences over `step`."""
    return _downhill(lambda moved: log_density(model, moved, scene_code), points, step)


def _downhill(field: Callable[[Tensor], Tensor], points: Tensor, step: float) -> Tensor:
    """(N, 3) unit vectors against the gradient of a field (M, 3) -> (M,)."""
    axes = torch.eye(3, device=points.device)
    moved = points + step * torch.cat([axes, -axes])[:, None]
    ahead, behind = field(moved.view(-1, 3)).view(2, 3, -1)
    # The trace of +z gives a direction, any is as good, to a vector that has none.
    return functional.normalize((behind - ahead).T + 1e-12 * axes[2], eps=1e-30)


def log_density(model: TripoSR, points: Tensor, scene_code: Tensor) -> Tensor:
    """(N,) natural logarithm of the density at (N, 3) points; finite."""
    # The logarithm is close to linear across the surface, which interpolation relies on.
    return model.query_density(points, scene_code).clamp(1e-30, 1e30).log()


def log_density_lattice(
    model: TripoSR, scene_code: Tensor, resolution: int, threshold: float
) -> Tensor:
    """(R, R, R) log-density from face to face of the cube, indexed [x][y][z].

    Raises:
        GenerationError: The density is not finite, or nowhere or everywhere above the threshold.
    """
    density = model.density_grid(scene_code, resolution)
    low, high = to_host(torch.stack(torch.aminmax(density)))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise GenerationError(
            f"the density field is not finite (from {low:g} to {high:g}): the image to 3D stage "
            "produced a broken scene code"
        )
    if not low < threshold < high:
        where = "nowhere" if high <= threshold else "everywhere"
        raise GenerationError(
            f"the density field has no surface: it runs from {low:g} to {high:g} and is {where} "
            f"above the threshold of {threshold:g}"
        )
    return density.clamp(1e-30, 1e30).log()


def without_floaters(
    lattice: Tensor, level: float, min_component: float, *, finer: int = 1
) -> Tensor:
    """Returns the lattice, emptied around bodies with less than a share of the largest's volume.

    Args:
        lattice: (R, R, R) log-density.
        level: Log-density of the surface.
        min_component: The share, 0..1.
        finer: How many cells of this lattice lie along one of the lattice of the search, whose
            blocks tell bodies apart.
    """
    from scipy import ndimage

    inside = lattice > level
    n = inside.shape[0]
    # Blocks are enough to tell bodies apart, and few enough to be labelled in a millisecond.
    size = finer * max(2, ((n - 1) // finer + 1) // _BLOCKS)
    padded = functional.pad(inside[None, None].float(), (0, -n % size) * 3)
    filled = functional.avg_pool3d(padded, size, divisor_override=1)[0, 0]
    points = to_host(filled)
    labels, bodies = ndimage.label(points > 0, structure=np.ones((3, 3, 3)))
    if bodies <= 1:
        return lattice
    # In lattice points: in blocks, a small body would count for several times its volume.
    volumes = np.bincount(labels.flat, weights=points.flat)
    volumes[0] = np.inf  # the label of blocks without a body
    small = volumes < min_component * volumes[1:].max()
    if not small.any():
        return lattice
    floating = torch.from_numpy(small[labels]).to(lattice.device)
    # With the points around it, or a near miss there would bring its surface back. No other body
    # is that near: a block lies between.
    index = torch.arange(n, device=lattice.device)
    below, above = (index - 1).clamp_min(0) // size, (index + 1).clamp_max(n - 1) // size
    for axis in range(3):
        floating = floating.index_select(axis, below) | floating.index_select(axis, above)
    return lattice.masked_fill(floating, EMPTY)


def active_cells(lattice: Tensor, level: float) -> Tensor:
    """(M, 3) int64 indices of the lattice cells that the level passes through.

    Near misses count if one or two of them lead to a cell whose corners differ in sign; alone, they
    would be floaters too small for the lattice.
    """
    top = functional.max_pool3d(lattice[None, None], 2, stride=1)[0, 0]
    bottom = -functional.max_pool3d(-lattice[None, None], 2, stride=1)[0, 0]
    # Beyond a few e-foldings the exact value says nothing about where the surface is.
    reach = _NEAR_MISS * (top - bottom).clamp_max(4.0)
    near = (bottom - reach < level) & (top + reach > level)
    found = (bottom < level) & (top > level)
    for _ in range(_NEAR_MISSES_IN_A_ROW):
        found = _with_neighbours(found) & near
    return found.nonzero()


def _with_neighbours(cells: Tensor) -> Tensor:
    """Marks the 26 neighbours of every marked cell (N, N, N) too."""
    for axis, length in enumerate(cells.shape):
        grown = cells.clone()
        grown.narrow(axis, 1, length - 1).logical_or_(cells.narrow(axis, 0, length - 1))
        grown.narrow(axis, 0, length - 1).logical_or_(cells.narrow(axis, 1, length - 1))
        cells = grown
    return cells


@dataclass(frozen=True)
class _Edges:
    """Fine lattice edges with the level between their ends.

    Attributes:
        start: (E, 3) float32 world position of the lower end.
        direction: (E, 3) float32, from the lower end to the upper.
        values: (E, 2) float32 log-density minus the level at both ends.
    """

    start: Tensor
    direction: Tensor
    values: Tensor

    def __getitem__(self, rows: Tensor) -> "_Edges":
        return _Edges(self.start[rows], self.direction[rows], self.values[rows])

    def crossings(self) -> Tensor:
        """(E, 3) points where the level is met if log-density is linear."""
        low, high = self.values.unbind(dim=-1)
        return self.at(low / (low - high))

    def at(self, share: Tensor) -> Tensor:
        """(E, 3) points at a share (E,) of the way from the lower end to the upper."""
        return torch.addcmul(self.start, share[:, None], self.direction)


def _crossed_edges(
    model: TripoSR, scene_code: Tensor, cells: Tensor, subdivision: int, step: float, level: float
) -> _Edges:
    device = cells.device
    # A node's key is its three indices in one integer.
    shifts = torch.arange(2, -1, -1, device=device) * _KEY_BITS
    span = torch.arange(subdivision + 1, device=device)
    inner = (torch.cartesian_prod(span, span, span) << shifts).sum(dim=-1)
    keys = torch.unique((cells * subdivision << shifts).sum(dim=-1, keepdim=True) + inner)
    nodes = (keys[:, None] >> shifts) & ((1 << _KEY_BITS) - 1)
    world = nodes * step - model.radius
    value = log_density(model, world, scene_code) - level
    inside = value > 0
    ends = keys + (1 << shifts)[:, None]
    found = torch.searchsorted(keys, ends).clamp_max(len(keys) - 1)
    axis, low = ((keys[found] == ends) & (inside[found] != inside)).nonzero().unbind(dim=-1)
    high = found[axis, low]
    direction = (step * torch.eye(3, device=device))[axis]
    return _Edges(world[low], direction, torch.stack((value[low], value[high]), dim=-1))


def _solve_crossings(model: TripoSR, scene_code: Tensor, edges: _Edges, level: float) -> Tensor:
    """(E, 3) points where the level is met on each edge, by regula falsi (Illinois variant)."""
    low_value, high_value = edges.values.unbind(dim=-1)
    inside = low_value > 0
    low, high = torch.zeros_like(low_value), torch.ones_like(low_value)
    for _ in range(_REFINEMENTS):
        t = low + (high - low) * low_value / (low_value - high_value)
        value = log_density(model, edges.at(t), scene_code) - level
        on_low_side = (value > 0) == inside
        # Halving the end that stays keeps a saturated field from pinning the bracket.
        low, high = torch.where(on_low_side, t, low), torch.where(on_low_side, high, t)
        low_value, high_value = (
            torch.where(on_low_side, value, low_value / 2),
            torch.where(on_low_side, high_value / 2, value),
        )
    t = low + (high - low) * low_value / (low_value - high_value).where(low_value != high_value, 1)
    return edges.at(t)


def _sample_lattice(lattice: Tensor, coordinates: Tensor) -> Tensor:
    """(N,) trilinear values of a lattice (R, R, R) indexed [x][y][z] at (N, 3) in -1..1."""
    grid = coordinates.flip(-1)[None, None, None]
    return functional.grid_sample(
        lattice[None, None], grid, padding_mode="border", align_corners=True
    ).flatten()


def _pick_evenly(
    points: Tensor, lattice: Tensor, radius: float, count: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Picks crossings so that each stands for the same area.

    Systematic sampling along a space-filling curve: points that are near on the curve are near in
    space, so equal steps of accumulated area leave neither clumps nor gaps. The area is counted in
    integers, whose sum does not depend on the order that a GPU adds in.

    Args:
        points: (E, 3) crossings of the fine lattice's edges.
        lattice: (R, R, R) log-density, coarse, which tells how the surface lies at a point.
        radius: Half the side of the lattice's cube.
        count: Most points to pick.
        seed: Shifts which are picked.

    Returns:
        Indices of at most `count` points, and the surface's area in squares of the fine lattice,
        () float64.
    """
    cell = 2 / (len(lattice) - 1)
    clamped = lattice.clamp(-10.0, 20.0)
    normals = _downhill(lambda moved: _sample_lattice(clamped, moved), points / radius, cell)
    # A plane crosses |nx| + |ny| + |nz| lattice edges per square of its area (Cauchy-Crofton).
    share = 1 / normals.abs().sum(dim=-1)
    order = torch.argsort(_morton(points, radius), stable=True)
    area = (share[order] * _AREA_UNITS).round().long().cumsum(0)
    if len(points) > count:
        offset = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
        targets = _even_targets(area[-1], count, offset)
        # Where candidates are scarce, two targets can fall on one.
        order = order[torch.unique_consecutive(torch.searchsorted(area, targets, right=True))]
    return order, area[-1].double() / _AREA_UNITS


def _even_targets(total: Tensor, count: int, offset: float) -> Tensor:
    """(count,) int64 in 0 .. total - 1, evenly spaced.

    In float64, which holds every total exactly: in float32, the offsets of one seed in 600 round
    the last target up to the total, where no candidate lies.

    Args:
        total: () int64.
        count: How many.
        offset: Where the first lies between 0 and the second, 0 <= offset < 1.
    """
    index = torch.arange(count, dtype=torch.float64, device=total.device)
    targets = ((index + offset) * (total.double() / count)).long()
    # The product can still be rounded up to the total, by an offset just below 1.
    return torch.minimum(targets, total - 1)


def _morton(points: Tensor, radius: float) -> Tensor:
    """(N,) int64 Morton codes of (N, 3) points in -radius..radius, 20 bits an axis."""
    code = ((points / radius + 1) * (1 << 19)).long().clamp(0, (1 << 20) - 1)
    for shift, mask in (
        (32, 0x1F00000000FFFF),
        (16, 0x1F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        code = (code | (code << shift)) & mask
    return (code << torch.arange(3, device=points.device)).sum(dim=-1)
