import io
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from generation.errors import GenerationError
from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.mesh import marching_cubes, surface_points
from tests.generation.lift.triposr.conftest import Arrays


def assert_same_set(
    found: NDArray[np.float32], expected: NDArray[np.float32], tolerance: float
) -> NDArray[np.int64]:
    """Returns, for each expected point, its place among those found."""
    assert found.shape == expected.shape
    distance, place = cKDTree(found).query(expected)
    assert distance.max() <= tolerance
    assert cKDTree(expected).query(found)[0].max() <= tolerance
    return np.asarray(place)


def test_vertices_and_colours_are_the_references(
    tiny: TripoSR, code: SceneCode, expected: Arrays
) -> None:
    threshold = float(expected["threshold"])
    mesh = tiny.extract_mesh(code, resolution=32, threshold=threshold)
    vertices = np.asarray(mesh.vertices, np.float32)
    place = assert_same_set(vertices, expected["mesh_vertices"], 2e-5)
    colours = np.asarray(mesh.visual.vertex_colors)[place].astype(int)
    # A vertex may sit a rounding error away, where the colour rounds to the next of 256.
    assert np.abs(colours - expected["mesh_colors_u8"].astype(int)).max() <= 1
    assert (colours != expected["mesh_colors_u8"]).mean() < 0.01


def test_points_on_the_device_are_the_same_vertices(tiny: TripoSR, expected: Arrays) -> None:
    grid = torch.from_numpy(expected["density_grid"])
    points = surface_points(grid, float(expected["threshold"]), tiny.radius)
    assert_same_set(points.numpy(), expected["mesh_vertices"], 2e-6)


def ball(resolution: int = 24) -> torch.Tensor:
    line = torch.linspace(-1, 1, resolution)
    x, y, z = torch.meshgrid(line, line, line, indexing="ij")
    return 0.8 - (x**2 + y**2 + 2 * z**2).sqrt()


def test_faces_wind_outwards_and_close() -> None:
    vertices, faces = marching_cubes(ball(), 0.0, radius=2.0)
    corners = vertices[faces].astype(float)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((normals * corners.mean(1)).sum(1) > 0).all()
    volume = np.einsum("ij,ij->", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])) / 6
    assert volume == pytest.approx(4 / 3 * np.pi * 1.6**3 / 2**0.5, rel=0.02)
    edges = Counter(
        (int(a), int(b)) for face in faces for a, b in zip(face, np.roll(face, -1), strict=True)
    )
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)


def test_a_surface_that_meets_the_side_stays_open() -> None:
    vertices, _ = marching_cubes(ball()[:12], 0.0, radius=1.0)
    assert vertices[:, 0].max() == pytest.approx(1.0)
    half = torch.zeros(8, 8, 8)
    half[:, :, :4] = 1.0
    vertices, faces = marching_cubes(half, 0.5, radius=1.0)
    assert np.ptp(vertices[:, 2]) == 0
    assert len(faces) == 7 * 7 * 2


@pytest.mark.parametrize("threshold", [1e9, 0.0])
def test_no_surface_is_a_failed_request(tiny: TripoSR, code: SceneCode, threshold: float) -> None:
    with pytest.raises(GenerationError, match=r"no surface at density .* runs from"):
        tiny.extract_mesh(code, resolution=16, threshold=threshold)


def test_the_mesh_can_be_written(tiny: TripoSR, code: SceneCode) -> None:
    mesh = tiny.extract_mesh(code, resolution=16, threshold=0.4752)
    written = io.BytesIO()
    mesh.export(written, file_type="glb")
    assert written.getvalue()[:4] == b"glTF"
