"""The surface of a density grid: as a mesh, or as points on the device."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.errors import GenerationError

if TYPE_CHECKING:
    import trimesh


def surface_points(density: Tensor, threshold: float, radius: float) -> Tensor:
    """Finds where the edges of the grid cross the threshold: the vertices of marching cubes.

    Args:
        density: (R, R, R), index [x][y][z], spanning the cube from face to face.
        threshold: Density of the surface.
        radius: Half the side of the cube.

    Returns:
        (M, 3) float32 x y z in world units, by linear interpolation; edges along x first.
    """
    step = 2 * radius / (density.shape[0] - 1)
    signed = density - threshold
    inside = signed > 0
    found = []
    for axis in range(3):
        length = density.shape[axis] - 1
        crosses = inside.narrow(axis, 0, length) != inside.narrow(axis, 1, length)
        cell = crosses.nonzero()
        before = signed.narrow(axis, 0, length)[crosses]
        after = signed.narrow(axis, 1, length)[crosses]
        points = cell.float()
        points[:, axis] += before / (before - after)
        found.append(points)
    return torch.cat(found) * step - radius


def marching_cubes(
    density: Tensor, threshold: float, radius: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Extracts the surface as triangles (Lorensen and Cline 1987), on the CPU.

    The grid is not padded: a surface that meets the cube's side stays open.

    Args:
        density: (R, R, R), index [x][y][z], spanning the cube from face to face.
        threshold: Density of the surface.
        radius: Half the side of the cube.

    Returns:
        Vertices (V, 3) in world units and faces (F, 3), counter-clockwise seen from outside.

    Raises:
        GenerationError: No density, or every density, is above the threshold.
    """
    from skimage.measure import marching_cubes as run

    low, high = density.min().item(), density.max().item()
    if not low < threshold < high:
        raise GenerationError(
            f"no surface at density {threshold:g}: the field runs from {low:g} to {high:g}"
        )
    step = 2 * radius / (density.shape[0] - 1)
    vertices, faces, _, _ = run(
        density.float().cpu().numpy(),
        threshold,
        spacing=(step, step, step),
        gradient_direction="ascent",
        method="lorensen",
    )
    return (vertices - radius).astype(np.float32), faces.astype(np.int32)


def coloured_mesh(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], rgb: Tensor
) -> "trimesh.Trimesh":
    """Builds a mesh with one colour (V, 3) in 0..1 per vertex; order is kept."""
    import trimesh

    colours = (rgb * 255).round().byte().cpu().numpy()
    return trimesh.Trimesh(vertices, faces, vertex_colors=colours, process=False)
