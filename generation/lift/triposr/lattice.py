"""The first search for the surface of a TripoSR scene, on a coarse lattice."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from generation.acceleration.streams import to_host
from generation.errors import GenerationError
from generation.lift.triposr.field import HIGHEST, LOWEST, SceneField

EMPTY = -70.0
"""Log-density of a place that a floater was taken out of."""

_BLOCKS = 32
"""Blocks per side in which bodies are told apart; touching blocks belong together."""
_NEAR_MISS = 0.25
"""A cell whose corners agree in sign is still searched if the level lies within this share of its
corners' range: a curved surface can bulge through a face and leave all corners on one side."""
_NEAR_MISSES_IN_A_ROW = 2
_REACH = 0.5
"""A cell of the first pass is sampled finely if the level lies within this share of the largest
range of a cell next to it. On the shipped networks 1.0 finds the same cells."""


def search_lattice(
    field: SceneField, resolution: int, threshold: float, min_component: float
) -> tuple[Tensor, Tensor, int]:
    """Samples the field on a lattice, without its floaters, and finds the surface's cells.

    Args:
        field: The scene.
        resolution: Lattice points per side.
        threshold: Density of the surface.
        min_component: Connected bodies with less than this share of the largest one's volume are
            floaters, and left out.

    Returns:
        See `settle`.

    Raises:
        GenerationError: The density is not finite, or nowhere or everywhere above the threshold.
    """
    read = read_lattice(field, resolution, math.log(threshold))
    return settle(*read, threshold, min_component)


def read_lattice(field: SceneField, resolution: int, level: float) -> tuple[Tensor, Tensor, Tensor]:
    """The device's part of `search_lattice`; looks at no value on the host.

    Returns:
        (R, R, R) log-density from face to face of the cube, indexed [x][y][z]; `active_cells` of
        it; (3 + B ** 3,) what `settle` has to know, in one transfer: the least and the largest
        log-density, the number of cells, and how many lattice points of each block lie inside.
    """
    raw = sampled_lattice(field, resolution, level)
    extremes = torch.stack(torch.aminmax(raw))
    lattice = raw.clamp(LOWEST, HIGHEST)
    cells = active_cells(lattice, level)
    filled = _filled_blocks(lattice > level, _block_size(resolution))
    return lattice, cells, torch.cat([extremes, cells.sum()[None], filled.flatten()])


def settle(
    lattice: Tensor, cells: Tensor, numbers: Tensor, threshold: float, min_component: float
) -> tuple[Tensor, Tensor, int]:
    """The host's part of `search_lattice`: takes floaters out, which most objects do not have.

    Returns:
        The lattice; its cells; how many these are.

    Raises:
        GenerationError: See `search_lattice`.
    """
    found = to_host(numbers)
    _check_range(found[:2], threshold)
    size = _block_size(len(lattice))
    side = -(-len(lattice) // size)
    floating = _floating_blocks(found[3:].reshape(side, side, side), min_component)
    if floating is None:
        return lattice, cells, int(found[2])
    lattice = _emptied(lattice, floating, size)
    cells = active_cells(lattice, math.log(threshold))
    return lattice, cells, int(to_host(cells.sum()))


def sampled_lattice(field: SceneField, resolution: int, level: float) -> Tensor:
    """Samples the field on a lattice; on a CPU, finely only where the surface can be.

    There, every other point along each axis is asked for first, if these are at least one for each
    texel of the planes, than which nothing is narrower. Where they say that the surface is far, the
    rest is interpolated. A GPU has sampled all points before it could be told which.

    Returns:
        (R, R, R) log-density, not cut off.
    """
    if field.device.type != "cpu" or resolution < 2 * field.texels:
        return field.log_density_lattice(resolution)
    index = torch.arange(resolution)
    coarse_index = torch.cat([index[:-1:2], index[-1:]])
    line = torch.linspace(-field.radius, field.radius, resolution)
    coarse_line = line[coarse_index]
    points = torch.cartesian_prod(coarse_line, coarse_line, coarse_line)
    lattice = field.unbounded_log_density(points).view((len(coarse_line),) * 3)

    bottom, top = _extremes_of_cells(lattice.clamp(LOWEST, HIGHEST))
    span = functional.max_pool3d((top - bottom)[None, None], 3, stride=1, padding=1)[0, 0]
    wanted = (bottom - _REACH * span < level) & (top + _REACH * span > level)
    nodes = functional.pad(wanted, (1,) * 6)
    for axis in range(3):
        length = nodes.shape[axis] - 1
        nodes = nodes.narrow(axis, 0, length) | nodes.narrow(axis, 1, length)
        # A point between two coarse ones is wanted with both; a wanted cell has all of its own.
        nodes = _interleaved(nodes, axis, resolution, torch.logical_and)
        lattice = _interleaved(lattice, axis, resolution, _middle)
    sampled = torch.zeros(resolution, dtype=torch.bool)
    sampled[coarse_index] = True
    nodes &= ~(sampled[:, None, None] & sampled[:, None] & sampled)
    asked = nodes.nonzero()
    lattice[nodes] = field.unbounded_log_density(line[asked])
    return lattice


def _check_range(extremes: NDArray[np.float32], threshold: float) -> None:
    with np.errstate(over="ignore"):
        low, high = np.exp(extremes)
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
    size = _block_size(len(lattice), finer)
    filled = to_host(_filled_blocks(lattice > level, size))
    floating = _floating_blocks(filled, min_component)
    return lattice if floating is None else _emptied(lattice, floating, size)


def _block_size(resolution: int, finer: int = 1) -> int:
    """Lattice points along a block: blocks are enough to tell bodies apart, and few to label."""
    return finer * max(2, ((resolution - 1) // finer + 1) // _BLOCKS)


def _filled_blocks(inside: Tensor, size: int) -> Tensor:
    """(B, B, B) float32: how many lattice points of each block lie inside."""
    padded = functional.pad(inside[None, None].float(), (0, -len(inside) % size) * 3)
    return functional.avg_pool3d(padded, size, divisor_override=1)[0, 0]


def _floating_blocks(filled: NDArray[np.float32], min_component: float) -> NDArray[np.bool_] | None:
    """Marks the blocks (B, B, B) of small bodies; None if there are none."""
    from scipy import ndimage

    labels, bodies = ndimage.label(filled > 0, structure=np.ones((3, 3, 3)))
    if bodies <= 1:
        return None
    # In lattice points: in blocks, a small body would count for several times its volume.
    volumes = np.bincount(labels.flat, weights=filled.flat)
    volumes[0] = np.inf  # the label of blocks without a body
    small = volumes < min_component * volumes[1:].max()
    return np.asarray(small[labels]) if small.any() else None


def _emptied(lattice: Tensor, blocks: NDArray[np.bool_], size: int) -> Tensor:
    """Empties the marked blocks (B, B, B) of a lattice, and the points around them."""
    floating = torch.from_numpy(blocks).to(lattice.device)
    # With the points around it, or a near miss there would bring its surface back. No other body
    # is that near: a block lies between.
    n = len(lattice)
    index = torch.arange(n, device=lattice.device)
    below, above = (index - 1).clamp_min(0) // size, (index + 1).clamp_max(n - 1) // size
    for axis in range(3):
        floating = floating.index_select(axis, below) | floating.index_select(axis, above)
    return lattice.masked_fill(floating, EMPTY)


def active_cells(lattice: Tensor, level: float) -> Tensor:
    """(N, N, N) bool: the cells of a lattice (N + 1, ...) that the level passes through.

    Near misses count if one or two of them lead to a cell whose corners differ in sign; alone, they
    would be floaters too small for the lattice.
    """
    bottom, top = _extremes_of_cells(lattice)
    # Beyond a few e-foldings the exact value says nothing about where the surface is.
    reach = _NEAR_MISS * (top - bottom).clamp_max_(4.0)
    near = (bottom - reach < level) & (top + reach > level)
    found = (bottom < level) & (top > level)
    for _ in range(_NEAR_MISSES_IN_A_ROW):
        found = _with_neighbours(found) & near
    return found


def _extremes_of_cells(lattice: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest value at the corners of each cell; (R - 1, R - 1, R - 1) each."""
    bottom = top = lattice
    for axis, length in enumerate(lattice.shape):
        below, above = (bottom.narrow(axis, start, length - 1) for start in (0, 1))
        bottom = torch.minimum(below, above)
        below, above = (top.narrow(axis, start, length - 1) for start in (0, 1))
        top = torch.maximum(below, above)
    return bottom, top


def _interleaved(
    coarse: Tensor, axis: int, length: int, between: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Doubles a tensor along an axis to `length`; its last two values are neighbours if even."""
    fine = coarse.new_empty([length if i == axis else n for i, n in enumerate(coarse.shape)])
    here = fine.transpose(0, axis)
    values = coarse.transpose(0, axis)
    here[:-1:2], here[-1] = values[:-1], values[-1]
    inner = values[: (length + 1) // 2]
    here[1 : length - 1 : 2] = between(inner[:-1], inner[1:])
    return fine


def _middle(below: Tensor, above: Tensor) -> Tensor:
    return (below + above) / 2


def _with_neighbours(cells: Tensor) -> Tensor:
    """Marks the 26 neighbours of every marked cell (N, N, N) too."""
    cells = functional.pad(cells, (1,) * 6)
    for axis in range(3):
        length = cells.shape[axis] - 2
        below, here, above = (cells.narrow(axis, start, length) for start in range(3))
        cells = below | here | above
    return cells
