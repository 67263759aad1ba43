"""A mesh is the object of the Gaussian cloud: same place, same size, no floaters, in a budget."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from torch.nn import functional

from generation.errors import GenerationError
from generation.lift.triposr import SceneCode, TripoSR, lattice
from generation.lift.triposr.field import SceneField
from generation.lift.triposr.splats import extract_cloud
from generation.lift.triposr.triangles import (
    _nodes_of,
    _refined,
    _without_flat_pairs,
    extract_triangles,
    vertex_normals,
)
from generation.packing import LARGEST_SIDE
from generation.pictures.framing import composite_on_grey
from generation.presets import preset
from generation.settings import MeshSettings, SplatSettings
from generation.stage import TriangleMesh
from generation.weights.store import ModelPaths
from scripts.benchmarks.scenes import BOX_HALF_SIDES, box, sphere
from tests.generation.lift.triposr.conftest import GOLDEN

COARSE = SplatSettings(max_gaussians=12_000, resolution=32)
SMALL = MeshSettings(resolution=64, triangles=5_000)


def is_closed(faces: NDArray[np.int32]) -> bool:
    """Whether every edge has exactly one face on either side, winding the other way."""
    edges = Counter((int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True))
    return set(edges.values()) == {1} and all((b, a) in edges for a, b in edges)


def volume(mesh: TriangleMesh) -> float:
    a, b, c = mesh.vertices[mesh.faces].astype(float).transpose(1, 0, 2)
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def bodies(mesh: TriangleMesh) -> int:
    rows, columns = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    count = len(mesh.vertices)
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(count, count))
    return int(connected_components(links)[0])


@pytest.fixture(scope="module")
def shipped(embedded_paths: ModelPaths) -> tuple[TripoSR, SceneCode]:
    """A scene of the preset `embedded`, from the golden picture."""
    model = TripoSR.from_pretrained(embedded_paths.lift)
    with Image.open(GOLDEN / "prep" / "input_rgba.png") as picture:
        return model, model.scene_codes(composite_on_grey(picture.convert("RGBA")))


@pytest.fixture(scope="module")
def toy(shipped: tuple[TripoSR, SceneCode]) -> TriangleMesh:
    return extract_triangles(*shipped, preset("embedded").splats, MeshSettings(resolution=128))


def test_mesh_and_cloud_of_one_scene_have_the_same_box(
    shipped: tuple[TripoSR, SceneCode], toy: TriangleMesh
) -> None:
    cloud = extract_cloud(*shipped, preset("embedded").splats)
    for points in (cloud.positions, toy.vertices):
        assert np.ptp(points, axis=0).max() == pytest.approx(LARGEST_SIDE, abs=1e-5)
        np.testing.assert_allclose(points.max(axis=0) + points.min(axis=0), 0, atol=1e-5)
    sides = np.ptp(toy.vertices, axis=0), np.ptp(cloud.positions, axis=0)
    np.testing.assert_allclose(*sides, atol=0.015)


def test_mesh_and_cloud_of_one_scene_have_the_same_surface_and_colours(
    shipped: tuple[TripoSR, SceneCode], toy: TriangleMesh
) -> None:
    settings = preset("embedded").splats
    cloud = extract_cloud(*shipped, settings)
    distance, nearest = cKDTree(cloud.positions).query(toy.vertices)
    spacing = np.sqrt(6.0 / len(cloud))
    assert distance.max() < 3 * spacing  # a floater would be farther away
    assert np.median(np.abs(cloud.rgb[nearest] - toy.rgb)) < 0.02
    back, _ = cKDTree(toy.vertices).query(cloud.positions)
    assert back.max() < 2 * spacing


def test_a_shipped_scene_is_closed_and_turned_outwards(toy: TriangleMesh) -> None:
    assert is_closed(toy.faces)
    assert volume(toy) > 0


@pytest.mark.parametrize("resolution", [64, 100])
def test_a_sphere_lies_on_its_radius_with_normals_outwards(resolution: int) -> None:
    size = MeshSettings(resolution=resolution, triangles=1_000_000)
    mesh = extract_triangles(*sphere(steepness=200.0), COARSE, size)
    radii = np.linalg.norm(mesh.vertices, axis=1)
    assert np.abs(radii - LARGEST_SIDE / 2).max() < 0.01
    np.testing.assert_allclose(np.linalg.norm(mesh.normals, axis=1), 1.0, atol=1e-6)
    cosine = (mesh.normals * mesh.vertices).sum(axis=1) / radii
    assert cosine.min() > np.cos(np.radians(5))
    assert is_closed(mesh.faces)
    assert mesh.faces.max() == len(mesh.vertices) - 1


def test_a_box_keeps_its_proportions_in_the_subnets_frame() -> None:
    size = MeshSettings(resolution=128, triangles=5_000)
    mesh = extract_triangles(*box(), SplatSettings(resolution=64), size)
    x, y, z = BOX_HALF_SIDES
    sides = np.array([y, z, x]) / x * LARGEST_SIDE
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), sides, rtol=0.02)
    assert volume(mesh) == pytest.approx(np.prod(sides), rel=0.03)


def test_colours_are_the_fields_at_each_vertex() -> None:
    model, code = sphere()
    size = MeshSettings(resolution=128, triangles=1_000_000)
    mesh = extract_triangles(model, code, SplatSettings(resolution=64), size)
    for axis, point in ((2, (0.6, 0, 0)), (0, (0, 0.6, 0)), (1, (0, 0, 0.6))):
        _, expected = model.query(torch.tensor([point]), code)
        _, nearest = cKDTree(mesh.vertices).query(LARGEST_SIDE / 2 * np.eye(3)[axis])
        np.testing.assert_allclose(mesh.rgb[nearest], expected[0], atol=0.02)


@pytest.mark.parametrize("triangles", [100, 1_000, 5_000])
def test_the_number_of_triangles_is_kept(triangles: int) -> None:
    size = MeshSettings(resolution=64, triangles=triangles)
    mesh = extract_triangles(*sphere(), COARSE, size)
    assert 0.9 * triangles <= len(mesh.faces) <= triangles
    assert is_closed(mesh.faces)
    assert volume(mesh) == pytest.approx(4 / 3 * np.pi * (LARGEST_SIDE / 2) ** 3, rel=0.15)
    assert len(mesh.vertices) == len(mesh.normals) == len(mesh.rgb)


@pytest.mark.parametrize("steepness", [100.0, 2000.0])
def test_floaters_are_left_out_as_in_the_cloud(steepness: float) -> None:
    model, code = sphere(steepness)
    texel = int((0.7 / model.radius + 1) / 2 * code.shape[-1])
    code[:2, 0, texel : texel + 2, texel : texel + 2] += 0.49 * steepness
    settings = SplatSettings(resolution=64)
    size = MeshSettings(resolution=128, triangles=1_000_000)
    culled = extract_triangles(model, code, settings, size)
    assert bodies(culled) == 1
    assert np.abs(np.linalg.norm(culled.vertices, axis=1) - LARGEST_SIDE / 2).max() < 0.02
    kept = extract_triangles(model, code, settings.model_copy(update={"min_component": 0.0}), size)
    assert bodies(kept) > 1


def test_only_cells_on_the_surface_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    model, code = sphere()
    asked = []
    query = model.query_log_density

    def counting(points: torch.Tensor, scene_code: torch.Tensor) -> torch.Tensor:
        asked.append(len(points))
        return query(points, scene_code)

    monkeypatch.setattr(model, "query_log_density", counting)
    extract_triangles(model, code, SplatSettings(resolution=32), MeshSettings(resolution=125))
    assert 0 < sum(asked) < 125**3 / 8


def test_floaters_that_only_fine_samples_show_are_left_out(
    shipped: tuple[TripoSR, SceneCode], toy: TriangleMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every near miss is followed, so that parts of floaters come back.
    monkeypatch.setattr(lattice, "_NEAR_MISSES_IN_A_ROW", 200)
    size = MeshSettings(resolution=128)
    mesh = extract_triangles(*shipped, preset("embedded").splats, size)
    distance, _ = cKDTree(toy.vertices).query(mesh.vertices)
    assert distance.max() < 0.03


@pytest.mark.parametrize(("coarse", "steepness"), [(16, 100.0), (8, 2000.0)])
def test_sparse_samples_give_the_mesh_of_a_full_grid(coarse: int, steepness: float) -> None:
    model, code = sphere(steepness)
    size = MeshSettings(resolution=4 * (coarse - 1) + 1, triangles=1_000_000)
    sparse = extract_triangles(model, code, SplatSettings(resolution=coarse), size)
    full = extract_triangles(model, code, SplatSettings(resolution=size.resolution), size)
    assert len(sparse.faces) == len(full.faces)
    assert cKDTree(sparse.vertices).query(full.vertices)[0].max() < 1e-4


def test_every_cell_that_the_mesh_passes_through_is_sampled(
    shipped: tuple[TripoSR, SceneCode],
) -> None:
    model, code = shipped
    level, finer = math.log(25.0), 4
    with torch.inference_mode():
        field = SceneField(model, code)
        coarse, _, _ = lattice.search_lattice(field, 16, 25.0, 0.0)
        refined = _refined(field, coarse, level, finer)
        exact = lattice.search_lattice(field, len(refined), 25.0, 0.0)[0]
    inside = (refined > level).float()[None, None]
    highest, lowest = (
        functional.max_pool3d(sign * inside, finer + 1, stride=finer)[0, 0] * sign
        for sign in (1, -1)
    )
    nodes = _nodes_of(highest != lowest, finer)
    assert nodes.sum() > 5_000
    torch.testing.assert_close(refined[nodes], exact[nodes], atol=1e-3, rtol=1e-4)


def test_a_surface_that_meets_the_side_of_the_cube_is_closed() -> None:
    model, code = sphere()
    code[:2, 0] += 2000.0 / 1.2 * (1.0 - 0.6**2) / 2  # radius 1.0: through the sides at 0.87
    mesh = extract_triangles(model, code, COARSE, SMALL)
    assert is_closed(mesh.faces)
    assert (mesh.vertices[:, 1] > LARGEST_SIDE / 2 - 0.01).sum() > 20  # a lid, not a rim


def test_triangles_back_to_back_are_taken_out() -> None:
    points = np.eye(5, 3, dtype=np.float32)
    faces = np.array([[0, 1, 2], [2, 3, 4], [4, 3, 2]], np.int32)
    vertices, kept = _without_flat_pairs(points, faces)
    np.testing.assert_array_equal(vertices, points[:3])
    np.testing.assert_array_equal(kept, [[0, 1, 2]])


def test_normals_are_unit_vectors_even_where_faces_have_no_area() -> None:
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [5, 5, 5], [5, 5, 5]], np.float32)
    normals = vertex_normals(points, np.array([[0, 1, 2], [3, 4, 3]], np.int32))
    np.testing.assert_array_equal(normals[:3], [[0, 0, 1]] * 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0)


def test_no_surface_is_a_failed_request() -> None:
    model, code = sphere()
    code[:, 0] = -100.0
    with pytest.raises(GenerationError, match="no surface"):
        extract_triangles(model, code, COARSE, SMALL)


@pytest.mark.parametrize(
    "wrong", [{"resolution": 7}, {"resolution": 513}, {"triangles": 99}, {"triangles": -1}]
)
def test_sizes_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"greater than|less than"):
        MeshSettings.model_validate(wrong)
