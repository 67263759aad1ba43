"""A TripoSR scene as a coloured triangle mesh: the same object as its Gaussian cloud.

The surface is searched on the cloud's lattice, with the cloud's floaters left out, and only the
cells that it passes through are sampled finely. A mesh of 50,000 triangles therefore costs a
tenth of what a full grid of its resolution does.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from generation.errors import GenerationError
from generation.lift.triposr import TripoSR
from generation.lift.triposr.field import SceneField
from generation.lift.triposr.lattice import EMPTY, active_cells, search_lattice, without_floaters
from generation.lift.triposr.splats import TO_SUBNET
from generation.packing import LARGEST_SIDE
from generation.settings import MeshSettings, SplatSettings
from generation.stage import TriangleMesh

_QUERY_POINTS = 1 << 18

_AGGRESSIVENESS = (3, 7)
"""How fast the error that a collapse may cause is raised. Slowly gives the better mesh, but may
end above the wanted number of triangles."""


@torch.inference_mode()
def extract_triangles(
    model: TripoSR,
    scene_code: Tensor,
    settings: SplatSettings,
    size: MeshSettings,
) -> TriangleMesh:
    """Extracts the surface that `extract_cloud` covers with Gaussians, as triangles.

    Args:
        model: The network whose decoder reads `scene_code`.
        scene_code: (3, C, H, W) triplane on the model's device.
        settings: Threshold, lattice of the search and floaters, as for the cloud.
        size: How fine the samples are, and the most triangles.

    Raises:
        GenerationError: The density field is not finite or has no surface, or its surface cannot
            be simplified to so few triangles.
    """
    level = math.log(settings.threshold)
    searched = min(settings.resolution, size.resolution)
    field = SceneField(model, scene_code)
    coarse, _, _ = search_lattice(field, searched, settings.threshold, settings.min_component)
    finer = max(1, round((size.resolution - 1) / (searched - 1)))
    lattice = _refined(field, coarse, level, finer)
    # Between its points, the coarse lattice can have missed parts of floaters.
    lattice = without_floaters(lattice, level, settings.min_component, finer=finer)
    vertices, faces = _marching_cubes(lattice, level, model.radius)
    vertices, faces = _simplified(vertices, faces, size.triangles)
    _, rgb = field.query(torch.from_numpy(vertices).to(field.device))
    vertices = _in_subnet_frame(vertices)
    normals = vertex_normals(vertices, faces)
    return TriangleMesh(vertices, faces, normals, rgb.float().cpu().numpy())


def vertex_normals(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> NDArray[np.float32]:
    """(V, 3) unit vectors: the mean of the faces around each vertex, weighted by their area.

    A vertex whose faces have no area, or cancel out, gets +y: any direction is as good.
    """
    corners = vertices[faces].astype(np.float64)
    weighted = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    sums = np.stack(
        [
            np.bincount(faces.ravel(), np.repeat(weighted[:, axis], 3), len(vertices))
            for axis in range(3)
        ],
        axis=1,
    )
    length = np.linalg.norm(sums, axis=1, keepdims=True)
    found = length > np.finfo(np.float32).tiny
    return np.where(found, sums / np.where(found, length, 1.0), (0.0, 1.0, 0.0)).astype(np.float32)


def _refined(field: SceneField, coarse: Tensor, level: float, finer: int) -> Tensor:
    """Samples a lattice finely where the surface passes, and fills the rest from the coarse one.

    Returns:
        (R, R, R) log-density with `finer` cells along each of the coarse lattice's.
    """
    cells = len(coarse) - 1
    fine = functional.interpolate(
        coarse[None, None], size=[cells * finer + 1] * 3, mode="trilinear", align_corners=True
    )
    lattice = fine[0, 0]
    step = 2 * field.radius / (cells * finer)
    wanted = active_cells(coarse, level)
    sampled = torch.zeros_like(lattice, dtype=torch.bool)
    while True:
        nodes = (_nodes_of(wanted, finer) & ~sampled).nonzero()
        if len(nodes) == 0:
            return lattice
        for some in torch.split(nodes, _QUERY_POINTS):
            values = field.log_density(some * step - field.radius)
            lattice[some.unbind(dim=-1)] = values
        sampled[nodes.unbind(dim=-1)] = True
        # A cell next to a sampled one can turn out to hold a part of the surface as well.
        highest = functional.max_pool3d(fine, finer + 1, stride=finer)[0, 0]
        lowest = -functional.max_pool3d(-fine, finer + 1, stride=finer)[0, 0]
        wanted = (lowest < level) & (highest > level)


def _nodes_of(cells: Tensor, finer: int) -> Tensor:
    """Marks the nodes of a lattice `finer` times as fine that belong to marked cells (N, N, N)."""
    for axis in range(3):
        cells = cells.repeat_interleave(finer, dim=axis)
    corners = functional.pad(cells[None, None].float(), (1,) * 6)
    return functional.max_pool3d(corners, 2, stride=1)[0, 0] > 0


def _marching_cubes(
    lattice: Tensor, level: float, radius: float
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vertices (V, 3) in the model's world and faces (F, 3), without open borders."""
    from skimage.measure import marching_cubes

    # The layer of empty space closes a surface that meets the side of the cube.
    padded = functional.pad(lattice, (1,) * 6, value=EMPTY).float().cpu().numpy()
    step = 2 * radius / (len(lattice) - 1)
    vertices, faces, _, _ = marching_cubes(
        padded, level, gradient_direction="ascent", allow_degenerate=False
    )
    return ((vertices - 1) * step - radius).astype(np.float32), faces.astype(np.int32)


def _simplified(
    vertices: NDArray[np.float32], faces: NDArray[np.int32], triangles: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Collapses edges by quadric error (Garland, Heckbert 1997) to at most `triangles` faces."""
    import fast_simplification

    if len(faces) <= triangles:
        return vertices, faces
    for aggressiveness in _AGGRESSIVENESS:
        points, corners = fast_simplification.simplify(
            vertices, faces, target_count=triangles, agg=aggressiveness
        )
        if len(corners) <= triangles:
            return _without_flat_pairs(points, corners)
    raise GenerationError(
        f"the surface's {len(faces)} triangles could be simplified to {len(corners)}, not to "
        f"{triangles}; allow more triangles or lower the resolution"
    )


def _without_flat_pairs(
    vertices: NDArray[np.float32], faces: NDArray[np.int32]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Takes out triangles that lie back to back, to which collapsing can shrink a small part."""
    _, first, count = np.unique(
        np.sort(faces, axis=1), axis=0, return_inverse=True, return_counts=True
    )
    kept = faces[count[first] == 1]
    used, renumbered = np.unique(kept, return_inverse=True)
    return (
        np.asarray(vertices[used], np.float32),
        np.asarray(renumbered.reshape(kept.shape), np.int32),
    )


def _in_subnet_frame(points: NDArray[np.float32]) -> NDArray[np.float32]:
    turned = points[:, TO_SUBNET].astype(np.float64)
    low, high = turned.min(axis=0), turned.max(axis=0)
    scaled = (turned - (low + high) / 2) * (LARGEST_SIDE / (high - low).max())
    return np.asarray(scaled, np.float32)
