"""The first search for the surface of a TripoSR scene, on a coarse lattice."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from generation.acceleration.streams import to_host
from generation.errors import GenerationError
from generation.lift.triposr.field import HIGHEST, LOWEST, Field

EMPTY = -70.0
"""Log-density of a place that a floater was taken out of."""

_BLOCKS = 32
"""Blocks per side in which bodies are told apart; touching blocks belong together."""
_NEAR_MISS = 0.25
"""A cell whose corners agree in sign is still searched if the level lies within this share of its
corners' range: a curved surface can bulge through a face and leave all corners on one side."""
_NEAR_MISSES_IN_A_ROW = 2


def search_lattice(
    field: Field, resolution: int, threshold: float, min_component: float
) -> tuple[Tensor, Tensor, int]:
    """Samples the field on a lattice, without its floaters, and finds the surface's cells.

    What the host has to know comes in one transfer, for which the cells are found before the
    floaters: most objects have none.

    Args:
        field: The scene.
        resolution: Lattice points per side.
        threshold: Density of the surface.
        min_component: See `sample_surface`.

    Returns:
        (R, R, R) log-density from face to face of the cube, indexed [x][y][z]; `active_cells` of
        it; how many these are.

    Raises:
        GenerationError: The density is not finite, or nowhere or everywhere above the threshold.
    """
    level = math.log(threshold)
    raw = field.log_density_lattice(resolution)
    extremes = torch.stack(torch.aminmax(raw))
    lattice = raw.clamp(LOWEST, HIGHEST)
    cells = active_cells(lattice, level)
    size = _block_size(resolution)
    filled = _filled_blocks(lattice > level, size)
    numbers = to_host(torch.cat([extremes, cells.sum()[None], filled.flatten()]))
    _check_range(numbers[:2], threshold)
    floating = _floating_blocks(numbers[3:].reshape(filled.shape), min_component)
    if floating is None:
        return lattice, cells, int(numbers[2])
    lattice = _emptied(lattice, floating, size)
    cells = active_cells(lattice, level)
    return lattice, cells, int(to_host(cells.sum()))


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
    top = bottom = lattice
    for axis, length in enumerate(lattice.shape):
        top = torch.maximum(top.narrow(axis, 0, length - 1), top.narrow(axis, 1, length - 1))
        bottom = torch.minimum(
            bottom.narrow(axis, 0, length - 1), bottom.narrow(axis, 1, length - 1)
        )
    # Beyond a few e-foldings the exact value says nothing about where the surface is.
    reach = _NEAR_MISS * (top - bottom).clamp_max_(4.0)
    near = (bottom - reach < level) & (top + reach > level)
    found = (bottom < level) & (top > level)
    for _ in range(_NEAR_MISSES_IN_A_ROW):
        found = _with_neighbours(found) & near
    return found


def _with_neighbours(cells: Tensor) -> Tensor:
    """Marks the 26 neighbours of every marked cell (N, N, N) too."""
    cells = functional.pad(cells, (1,) * 6)
    for axis in range(3):
        length = cells.shape[axis] - 2
        below, here, above = (cells.narrow(axis, start, length) for start in range(3))
        cells = below | here | above
    return cells
