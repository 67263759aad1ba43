"""GLB and OBJ files hold what a conforming viewer needs: colours, normals, a matt material."""

import io
import json
import struct
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from generation.lift.triposr.mesh_files import linear_from_srgb, to_glb, to_obj
from generation.stage import TriangleMesh

VERTICES = np.array([[0.8, 0, 0], [0, 0.8, 0], [0, 0, 0.8], [-0.8, -0.8, -0.8]], np.float32)
MESH = TriangleMesh(
    vertices=VERTICES,
    faces=np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]], np.int32),
    normals=VERTICES / np.linalg.norm(VERTICES, axis=1, keepdims=True),
    rgb=np.array([[0, 0.5, 1], [10 / 255, 20 / 255, 0.04045], [1, 1, 1], [0, 0, 0]], np.float32),
)
TYPES = {5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
VERTEX_DATA, INDEX_DATA = 34962, 34963


def glb_parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk, by section 4.4 of the glTF 2.0 specification."""
    magic, version, length, json_length, json_kind = struct.unpack_from("<5I", data)
    assert (magic, version, length, json_kind) == (0x46546C67, 2, len(data), 0x4E4F534A)
    binary_length, binary_kind = struct.unpack_from("<2I", data, 20 + json_length)
    assert binary_kind == 0x004E4942
    assert json_length % 4 == binary_length % 4 == 0
    binary = data[28 + json_length :]
    assert len(binary) == binary_length
    return json.loads(data[20 : 20 + json_length]), binary


@pytest.fixture(scope="module")
def glb() -> tuple[dict[str, Any], bytes]:
    return glb_parts(to_glb(MESH))


def values(glb: tuple[dict[str, Any], bytes], index: int) -> NDArray[Any]:
    tree, binary = glb
    accessor = tree["accessors"][index]
    view = tree["bufferViews"][accessor["bufferView"]]
    assert view["byteOffset"] % 4 == 0
    assert accessor.get("byteOffset", 0) == 0
    assert "byteStride" not in view
    kind, width = np.dtype(TYPES[accessor["componentType"]]), WIDTHS[accessor["type"]]
    assert view["byteLength"] >= accessor["count"] * width * kind.itemsize
    found = np.frombuffer(binary, kind, accessor["count"] * width, view["byteOffset"])
    return found.reshape(-1, width)


def primitive(glb: tuple[dict[str, Any], bytes]) -> dict[str, Any]:
    tree, _ = glb
    assert [len(tree[part]) for part in ("meshes", "scenes", "nodes", "buffers")] == [1] * 4
    assert tree["asset"]["version"] == "2.0"
    assert tree["scenes"][tree["scene"]]["nodes"] == [0]
    assert set(tree["nodes"][0]) == {"name", "mesh"}  # no matrix: the vertices are in the frame
    (found,) = tree["meshes"][0]["primitives"]
    assert found["mode"] == 4
    assert set(found["attributes"]) == {"POSITION", "NORMAL", "COLOR_0"}
    return dict(found)


def test_glb_positions_and_indices(glb: tuple[dict[str, Any], bytes]) -> None:
    found = primitive(glb)
    np.testing.assert_array_equal(values(glb, found["attributes"]["POSITION"]), MESH.vertices)
    indices = values(glb, found["indices"])
    np.testing.assert_array_equal(indices.reshape(-1, 3), MESH.faces)


def test_glb_accessors_state_their_bounds(glb: tuple[dict[str, Any], bytes]) -> None:
    tree, _ = glb
    for index, accessor in enumerate(tree["accessors"]):
        held = values(glb, index)
        np.testing.assert_allclose(accessor["min"], held.min(axis=0), rtol=1e-7)
        np.testing.assert_allclose(accessor["max"], held.max(axis=0), rtol=1e-7)
        assert accessor["count"] == len(held)


def test_glb_views_say_what_they_hold(glb: tuple[dict[str, Any], bytes]) -> None:
    tree, binary = glb
    found = primitive(glb)
    for index, target in [
        *((accessor, VERTEX_DATA) for accessor in found["attributes"].values()),
        (found["indices"], INDEX_DATA),
    ]:
        assert tree["bufferViews"][tree["accessors"][index]["bufferView"]]["target"] == target
    assert tree["buffers"][0]["byteLength"] == len(binary)


def test_glb_normals_are_unit_vectors(glb: tuple[dict[str, Any], bytes]) -> None:
    normals = values(glb, primitive(glb)["attributes"]["NORMAL"])
    np.testing.assert_allclose(normals, MESH.normals, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1.0, atol=1e-5)


def test_glb_colours_are_linear_and_normalised(glb: tuple[dict[str, Any], bytes]) -> None:
    index = primitive(glb)["attributes"]["COLOR_0"]
    accessor = glb[0]["accessors"][index]
    assert (accessor["componentType"], accessor["normalized"], accessor["type"]) == (
        5123,
        True,
        "VEC4",
    )
    linear = values(glb, index) / 65535
    assert (linear[:, 3] == 1).all()
    np.testing.assert_allclose(linear[0, :3], [0, 0.21404114, 1], atol=1e-5)
    np.testing.assert_allclose(linear[1, :3], [0.00303527, 0.00699541, 0.00313080], atol=1e-5)


def test_dark_tones_of_a_glb_stay_apart() -> None:
    shades = np.tile(np.arange(256, dtype=np.float32)[:, None] / np.float32(255), (1, 3))
    rows = np.zeros(256, np.int64)
    many = TriangleMesh(MESH.vertices[rows], MESH.faces, MESH.normals[rows], shades)
    parts = glb_parts(to_glb(many))
    stored = values(parts, primitive(parts)["attributes"]["COLOR_0"])[:, 0]
    assert len(np.unique(stored)) == 256
    assert (np.diff(stored.astype(int)) > 0).all()


def test_glb_material_is_matt_and_one_sided(glb: tuple[dict[str, Any], bytes]) -> None:
    tree, _ = glb
    material = tree["materials"][primitive(glb)["material"]]
    surface = material["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.0, 1.0)
    assert surface.get("baseColorFactor", [1, 1, 1, 1]) == [1, 1, 1, 1]
    assert material["doubleSided"] is False
    assert "extensionsRequired" not in tree


def test_srgb_becomes_linear_by_the_standards_formula() -> None:
    srgb = np.array([0, 0.04045, 0.0404501, 0.5, 188 / 255, 1], np.float32)
    expected = [0, 0.0031308, 0.0031308, 0.2140411, 0.5028865, 1]
    np.testing.assert_allclose(linear_from_srgb(srgb), expected, atol=1e-6)


def test_obj_holds_srgb_colours_and_normals() -> None:
    text = to_obj(MESH).decode("ascii")
    lines = [line.split() for line in text.splitlines()]
    rows = np.array([line[1:] for line in lines if line[:1] == ["v"]], float)
    np.testing.assert_allclose(rows[:, :3], MESH.vertices, atol=1e-6)
    np.testing.assert_allclose(rows[:, 3:], MESH.rgb, atol=0.5 / 255 + 1e-6)
    normals = np.array([line[1:] for line in lines if line[:1] == ["vn"]], float)
    np.testing.assert_allclose(normals, MESH.normals, atol=1e-6)
    faces = [[int(corner.split("//")[0]) - 1 for corner in f[1:]] for f in lines if f[:1] == ["f"]]
    np.testing.assert_array_equal(faces, MESH.faces)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_trimesh_reads_the_file_back(kind: str) -> None:
    data = to_glb(MESH) if kind == "glb" else to_obj(MESH)
    back = trimesh.load(io.BytesIO(data), file_type=kind, force="mesh", process=False)
    np.testing.assert_allclose(back.vertices, MESH.vertices, atol=1e-6)
    np.testing.assert_array_equal(back.faces, MESH.faces)
    assert back.is_watertight
