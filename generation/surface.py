"""Points on the density crossing of a TripoSR scene, found on the device.

A coarse lattice says which cells the surface passes through; only those are subdivided and asked
again, so that a 400 million point lattice costs about a million queries. Candidates are the
crossings on the fine lattice's edges; an even subset of them is the sample.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from generation.errors import GenerationError
from generation.triposr import TripoSR

_MAX_SUBDIVISION = 6
_CANDIDATES_PER_SAMPLE = 2.0
_REFINEMENTS = 2
_BLOCKS = 32
"""Blocks per side in which bodies are told apart; touching blocks belong together."""
_NEAR_MISS = 0.25
"""A cell whose corners agree in sign is still searched if the level lies within this share of its
corners' range: a curved surface can bulge through a face and leave all corners on one side."""


@dataclass(frozen=True)
class Surface:
    """An even sample of a closed or open surface, in TripoSR's world frame.

    Attributes:
        points: (N, 3) float32, on the level set.
        normals: (N, 3) float32 unit vectors towards lower density.
        area: Surface area in square world units, estimated from the fine lattice.
    """

    points: Tensor
    normals: Tensor
    area: float

    @property
    def spacing(self) -> float:
        """Side of the square that one sample stands for, in world units."""
        return math.sqrt(self.area / len(self.points))


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
    coarse = _log_density_lattice(model, scene_code, resolution, threshold)
    coarse = _without_floaters(coarse, level, min_component)
    cells = _active_cells(coarse, level)
    subdivision = math.ceil(math.sqrt(_CANDIDATES_PER_SAMPLE * count / max(1, len(cells))))
    subdivision = min(max(1, subdivision), _MAX_SUBDIVISION)

    step = 2 * model.radius / ((resolution - 1) * subdivision)
    start, axis, values = _crossed_edges(model, scene_code, cells, subdivision, step, level)
    points = _solve_crossings(model, scene_code, start, axis, values, step, level)

    normals = _unit(-_sample_lattice(_gradient(coarse), points / model.radius))
    # A plane crosses |nx| + |ny| + |nz| lattice edges per step^2 of its area (Cauchy-Crofton).
    weights = step**2 / normals.abs().sum(dim=-1).clamp(1.0, math.sqrt(3.0))
    picked = _pick_evenly(points, weights, count, model.radius, seed)
    points = points[picked]
    return Surface(
        points, density_normals(model, scene_code, points, step), float(weights.double().sum())
    )


def density_normals(model: TripoSR, scene_code: Tensor, points: Tensor, step: float) -> Tensor:
    """(N, 3) unit vectors towards lower density, by central differences over `step`."""
    offsets = torch.eye(3, device=points.device) * step
    moved = torch.cat([points + o for o in (*offsets, *-offsets)])
    logs = _log_density(model, moved, scene_code).view(2, 3, -1)
    return _unit((logs[1] - logs[0]).T)


def _unit(vectors: Tensor) -> Tensor:
    """Normalises (N, 3); a vector without direction becomes +z, since any is as good."""
    norm = vectors.norm(dim=-1, keepdim=True)
    up = torch.tensor([0.0, 0.0, 1.0], device=vectors.device)
    return torch.where(norm > 1e-12, vectors / norm.clamp_min(1e-12), up)


def _log_density(model: TripoSR, points: Tensor, scene_code: Tensor) -> Tensor:
    # The logarithm is close to linear across the surface, which interpolation relies on.
    return model.query_density(points, scene_code).clamp(1e-30, 1e30).log()


def _log_density_lattice(
    model: TripoSR, scene_code: Tensor, resolution: int, threshold: float
) -> Tensor:
    density = model.density_grid(scene_code, resolution)
    low, high = (float(v) for v in torch.aminmax(density))
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


def _without_floaters(lattice: Tensor, level: float, min_component: float) -> Tensor:
    from scipy import ndimage

    inside = lattice > level
    n = inside.shape[0]
    # Blocks are enough to tell bodies apart, and few enough to be labelled in a millisecond.
    size = max(2, n // _BLOCKS)
    padded = functional.pad(inside[None, None].float(), (0, -n % size) * 3)
    filled = functional.avg_pool3d(padded, size, divisor_override=1)[0, 0]
    labels, bodies = ndimage.label((filled > 0).cpu().numpy(), structure=[[[1] * 3] * 3] * 3)
    if bodies <= 1:
        return lattice
    label = torch.from_numpy(labels).to(lattice.device)
    # In lattice points: in blocks, a small body would count for several times its volume.
    volumes = torch.bincount(label.flatten(), weights=filled.flatten())[1:]
    kept = functional.pad(volumes >= min_component * volumes.max(), (1, 0), value=True)
    for axis in range(3):
        label = label.repeat_interleave(size, dim=axis).narrow(axis, 0, n)
    # With the points around it, or a near miss there would bring its surface back.
    floating = _with_neighbours(inside & ~kept[label.long()])
    return torch.where(floating, lattice.new_tensor(-70.0), lattice)


def _with_neighbours(mask: Tensor) -> Tensor:
    """Adds to a mask (R, R, R) the 26 neighbours of every point in it."""
    for axis in range(3):
        length = mask.shape[axis] - 1
        grown = mask.clone()
        grown.narrow(axis, 1, length).logical_or_(mask.narrow(axis, 0, length))
        grown.narrow(axis, 0, length).logical_or_(mask.narrow(axis, 1, length))
        mask = grown
    return mask


def _active_cells(lattice: Tensor, level: float) -> Tensor:
    """(M, 3) int64 indices of the lattice cells that the level passes through."""
    top = functional.max_pool3d(lattice[None, None], 2, stride=1)[0, 0]
    bottom = -functional.max_pool3d(-lattice[None, None], 2, stride=1)[0, 0]
    # Beyond a few e-foldings the exact value says nothing about where the surface is.
    reach = _NEAR_MISS * (top - bottom).clamp_max(4.0)
    return ((bottom - reach < level) & (top + reach > level)).nonzero()


def _crossed_edges(
    model: TripoSR, scene_code: Tensor, cells: Tensor, subdivision: int, step: float, level: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Fine lattice edges with the level between their ends.

    Returns:
        start (E, 3) float32 world position of the edge's lower end; axis (E,) int64, 0..2;
        values (E, 2) float32 log-density minus the level at both ends.
    """
    device = cells.device
    span = torch.arange(subdivision + 1, device=device)
    inner = torch.cartesian_prod(span, span, span)
    nodes = (cells[:, None] * subdivision + inner).reshape(-1, 3)
    stride = 1 << 20
    keys = torch.unique((nodes[:, 0] * stride + nodes[:, 1]) * stride + nodes[:, 2])
    nodes = torch.stack((keys // stride**2, keys // stride % stride, keys % stride), dim=-1)
    world = nodes * step - model.radius
    value = _log_density(model, world, scene_code) - level
    starts, axes, values = [], [], []
    for axis, jump in enumerate((stride**2, stride, 1)):
        at = torch.searchsorted(keys, keys + jump).clamp_max(len(keys) - 1)
        crossed = (keys[at] == keys + jump) & ((value > 0) != (value[at] > 0))
        here = crossed.nonzero()[:, 0]
        starts.append(world[here])
        axes.append(torch.full_like(here, axis))
        values.append(torch.stack((value[here], value[at[here]]), dim=-1))
    return torch.cat(starts), torch.cat(axes), torch.cat(values)


def _solve_crossings(
    model: TripoSR,
    scene_code: Tensor,
    start: Tensor,
    axis: Tensor,
    values: Tensor,
    step: float,
    level: float,
) -> Tensor:
    """(E, 3) points where the level is met on each edge, by regula falsi (Illinois variant)."""
    if len(start) == 0:
        raise GenerationError("the density field's surface is too thin to be sampled")
    direction = functional.one_hot(axis, 3) * step
    inside = values[:, 0] > 0
    low, high = torch.zeros_like(values[:, 0]), torch.ones_like(values[:, 0])
    low_value, high_value = values.unbind(dim=-1)
    for _ in range(_REFINEMENTS):
        t = low + (high - low) * low_value / (low_value - high_value)
        value = _log_density(model, start + t[:, None] * direction, scene_code) - level
        on_low_side = (value > 0) == inside
        # Halving the end that stays keeps a saturated field from pinning the bracket.
        low, high = torch.where(on_low_side, t, low), torch.where(on_low_side, high, t)
        low_value, high_value = (
            torch.where(on_low_side, value, low_value / 2),
            torch.where(on_low_side, high_value / 2, value),
        )
    t = low + (high - low) * low_value / (low_value - high_value).where(low_value != high_value, 1)
    return start + t[:, None] * direction


def _gradient(lattice: Tensor) -> Tensor:
    """(3, R, R, R) central differences of the lattice along x, y, z."""
    return torch.stack(torch.gradient(lattice.clamp(-10.0, 20.0)))


def _sample_lattice(lattice: Tensor, coordinates: Tensor) -> Tensor:
    """(N, C) trilinear values of a (C, R, R, R) lattice indexed [x][y][z] at (N, 3) in -1..1."""
    grid = coordinates.flip(-1)[None, None, None]
    return functional.grid_sample(lattice[None], grid, align_corners=True)[0, :, 0, 0].T


def _pick_evenly(points: Tensor, weights: Tensor, count: int, radius: float, seed: int) -> Tensor:
    """Indices of at most `count` points, each standing for the same area.

    Systematic sampling along a space-filling curve: points that are near on the curve are near in
    space, so equal steps of accumulated area leave neither clumps nor gaps. The area is counted in
    integers, whose sum does not depend on the order that a GPU adds in.
    """
    order = torch.argsort(_morton(points, radius), stable=True)
    if len(points) <= count:
        return order
    area = (weights[order] / weights.max() * 65536).round().long().cumsum(0)
    offset = torch.rand(1, generator=torch.Generator().manual_seed(seed)).item()
    targets = ((torch.arange(count, device=points.device) + offset) * (area[-1] / count)).long()
    picked = torch.searchsorted(area, targets, right=True)
    # Where candidates are scarce, two targets can fall on one.
    return order[picked[picked.diff(prepend=picked.new_tensor([-1])) > 0]]


def _morton(points: Tensor, radius: float) -> Tensor:
    """(N,) int64 Morton codes of (N, 3) points in -radius..radius, 20 bits an axis."""
    code = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    cells = ((points / radius + 1) * (1 << 19)).long().clamp(0, (1 << 20) - 1)
    for axis in range(3):
        v = cells[:, axis]
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            v = (v | (v << shift)) & mask
        code |= v << axis
    return code
