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
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from generation.errors import GenerationError
from generation.lift.triposr.field import SceneField

_MAX_SUBDIVISION = 6
_CANDIDATES_PER_SAMPLE = 2.0
_REFINEMENTS = 2
_AREA_UNITS = 65536


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


@dataclass(frozen=True)
class Crossings:
    """An even sample of the fine lattice's edges that the surface crosses.

    Attributes:
        start: (E, 3) float32 world position of the lower end.
        direction: (E, 3) float32, from the lower end to the upper.
        values: (E, 2) float32 log-density minus the level at both ends.
        area: () float64 surface area in square world units.
        step: () float32 length of an edge.
    """

    start: Tensor
    direction: Tensor
    values: Tensor
    area: Tensor
    step: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """The attributes in their order."""
        return self.start, self.direction, self.values, self.area, self.step


def find_crossings(
    field: SceneField,
    lattice: Tensor,
    cells: Tensor,
    found: int,
    *,
    count: int,
    level: float,
    seed: int,
) -> Crossings:
    """Subdivides a coarse lattice's cells, and picks edges that the surface crosses, evenly.

    Args:
        field: The scene.
        lattice: From `search_lattice`, like the next two. Features thinner than its cells can be
            missed.
        cells: (N, N, N) bool.
        found: How many cells there are.
        count: Most edges to pick; fewer come back only from a tiny surface.
        level: Log-density of the surface.
        seed: Shifts which edges are picked; the same seed gives the same ones.

    Raises:
        GenerationError: The surface is too thin.
    """
    subdivision = math.ceil(math.sqrt(_CANDIDATES_PER_SAMPLE * count / max(1, found)))
    subdivision = min(max(1, subdivision), _MAX_SUBDIVISION)
    step = 2 * field.radius / ((len(lattice) - 1) * subdivision)
    edges = _crossed_edges(field, lattice, cells, subdivision, step, level)
    if len(edges.start) == 0:
        raise GenerationError("the density field's surface is too thin to be sampled")
    picked, area = _pick_evenly(edges.crossings(), lattice, field.radius, count, seed)
    edges = edges[picked]
    length = torch.full((), step, device=field.device)
    return Crossings(edges.start, edges.direction, edges.values, area * step**2, length)


def surface_at(field: SceneField, crossings: Crossings, level: float) -> Surface:
    """Moves crossings onto the level; looks at no value on the host."""
    edges = _Edges(crossings.start, crossings.direction, crossings.values)
    points = _solve_crossings(field, edges, level)
    normals = density_normals(field, points, crossings.step)
    return Surface(points, normals, crossings.area)


def density_normals(field: SceneField, points: Tensor, step: Tensor) -> Tensor:
    """(N, 3) unit vectors towards lower density, by central differences over `step`."""
    return _downhill(field.log_density, points, step)


def _downhill(field: Callable[[Tensor], Tensor], points: Tensor, step: float | Tensor) -> Tensor:
    """(N, 3) unit vectors against the gradient of a field (M, 3) -> (M,)."""
    axes = torch.eye(3, device=points.device)
    moved = points + step * torch.cat([axes, -axes])[:, None]
    ahead, behind = field(moved.view(-1, 3)).view(2, 3, -1)
    # The trace of +z gives a direction, any is as good, to a vector that has none.
    return functional.normalize((behind - ahead).T + 1e-12 * axes[2], eps=1e-30)


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
    field: SceneField, coarse: Tensor, cells: Tensor, subdivision: int, step: float, level: float
) -> _Edges:
    """Evaluates the field at the nodes of the subdivided cells (N, N, N) and compares neighbours.

    A block holds the subdivision ** 3 nodes from a point of the coarse lattice, whose value is
    known, up to the next. Those are asked for that belong to a marked cell. So a node's neighbours
    are in its own block or at the face of the next, and nothing has to be sorted or searched.
    """
    device, k = cells.device, subdivision
    # What touches each block, one bit per cell: itself, and those before it along x, y and z.
    touching = functional.pad(cells.to(torch.uint8), (1,) * 6)
    side = len(touching)
    for axis, shift in enumerate((2, 4, 16)):
        here, before = (touching.narrow(axis, start, touching.shape[axis] - 1) for start in (1, 0))
        touching = torch.add(here, before, alpha=shift)
    places = touching.nonzero()
    x, y, z = places.unbind(dim=-1)
    place = (x * side + y) * side + z
    bits = touching[x, y, z].int()
    blocks = len(places)

    wanted, offsets = _block_nodes(k, device)
    nodes = wanted[bits].flatten().nonzero()[:, 0]

    def world(of: Tensor) -> Tensor:
        block, local = of // k**3, of % k**3
        return (places[block] * k + offsets[local]) * step - field.radius

    # One more block, the neighbour where there is none. NaN is on neither side of the level.
    values = torch.full((blocks + 1, k**3), math.nan, device=device)
    values[:-1, 0] = coarse[x, y, z] - level
    values.view(-1)[nodes] = field.log_density(world(nodes)) - level
    values = values.view(-1, k, k, k)
    numbers = torch.full((side**3,), blocks, device=device)
    numbers[place] = torch.arange(blocks, device=device)
    here = values[:-1]
    ahead = []
    for axis in range(3):
        beyond = values.select(axis + 1, 0)[numbers[place + side ** (2 - axis)]]
        inner = here.narrow(axis + 1, 1, k - 1)
        ahead.append(torch.cat([inner, beyond.unsqueeze(axis + 1)], dim=axis + 1))
    upper = torch.stack(ahead)
    crossed = ((here > 0) & (upper <= 0)) | ((here <= 0) & (upper > 0))
    found = crossed.flatten().nonzero()[:, 0]
    low = found % here.numel()
    direction = (step * torch.eye(3, device=device))[found // here.numel()]
    ends = torch.stack((here.flatten()[low], upper.flatten()[found]), dim=-1)
    return _Edges(world(low), direction, ends)


@lru_cache(maxsize=16)
def _block_nodes(k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which nodes of a block but the first belong to the cells that touch it, and where they lie.

    Returns:
        (256, k ** 3) bool, by the cells that touch the block: bit dx + 2 dy + 4 dz is for the cell
        dx, dy and dz before it; (k ** 3, 3) int64.
    """
    offsets = np.stack(np.unravel_index(np.arange(k**3), (k, k, k)), axis=-1)
    cell = np.arange(8)
    before = cell[:, None] >> np.arange(3) & 1
    # The cell before it shares a node with the block if that lies in the face between them.
    shared = ((before[:, None] == 0) | (offsets == 0)).all(axis=-1)
    has = np.arange(256)[:, None] >> cell & 1
    wanted = (has @ shared > 0) & (offsets > 0).any(axis=-1)
    with torch.inference_mode(False):
        return torch.from_numpy(wanted).to(device), torch.from_numpy(offsets).to(device)


def _solve_crossings(field: SceneField, edges: _Edges, level: float) -> Tensor:
    """(E, 3) points where the level is met on each edge, by regula falsi (Illinois variant)."""
    low_value, high_value = edges.values.unbind(dim=-1)
    inside = low_value > 0
    low, high = torch.zeros_like(low_value), torch.ones_like(low_value)
    for _ in range(_REFINEMENTS):
        t = low + (high - low) * low_value / (low_value - high_value)
        value = field.log_density(edges.at(t)) - level
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
    index = ((points / radius + 1) * (1 << 19)).long().clamp_(0, (1 << 20) - 1)
    apart = _spread_bits(points.device)
    code = (apart[index >> 10] << 30) | apart[index & 1023]
    x, y, z = code.unbind(dim=-1)
    return x | (y << 1) | (z << 2)


@lru_cache(maxsize=8)
def _spread_bits(device: torch.device) -> Tensor:
    """(1024,) int64: the ten bits of each index, two zeros between them."""
    index = np.arange(1024)
    spread = sum((index >> bit & 1) << 3 * bit for bit in range(10))
    with torch.inference_mode(False):
        return torch.from_numpy(np.asarray(spread)).to(device)
