"""A triangle mesh as the bytes of a GLB or OBJ file."""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from generation.stage import TriangleMesh

if TYPE_CHECKING:
    import trimesh

_MATERIAL: Final = {
    "name": "vertex colours",
    "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
    "doubleSided": False,
}
"""glTF's default is a metal, which is black where a viewer has nothing to reflect in it."""

_COLOUR: Final = "_COLOUR"
_MAX_U16: Final = 65535
_VERTEX_DATA: Final = 34962
_INDEX_DATA: Final = 34963


def to_glb(mesh: TriangleMesh) -> bytes:
    """Encodes a mesh as binary glTF 2.0: normals, one matt material, colour per vertex.

    glTF multiplies the material's colour by COLOR_0 in linear light, so sRGB is converted. It is
    stored in 16 bits, as 8 would merge the dark tones.
    """
    import trimesh

    rgba = np.full((len(mesh.rgb), 4), _MAX_U16, np.uint16)
    rgba[:, :3] = np.rint(linear_from_srgb(mesh.rgb) * _MAX_U16)

    def finish(tree: dict[str, Any]) -> None:
        (primitive,) = tree["meshes"][0]["primitives"]
        colour = primitive["attributes"].pop(_COLOUR)
        primitive["attributes"]["COLOR_0"] = colour
        tree["accessors"][colour]["normalized"] = True
        primitive["material"] = 0
        tree["materials"] = [_MATERIAL]
        for accessor in primitive["attributes"].values():
            tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = _VERTEX_DATA
        indices = tree["accessors"][primitive["indices"]]
        tree["bufferViews"][indices["bufferView"]]["target"] = _INDEX_DATA

    solid = _as_trimesh(mesh)
    solid.vertex_attributes[_COLOUR] = rgba
    data = trimesh.exchange.gltf.export_glb(
        trimesh.Scene({"object": solid}), include_normals=True, tree_postprocessor=finish
    )
    return bytes(data)


def to_obj(mesh: TriangleMesh) -> bytes:
    """Encodes a mesh as Wavefront OBJ: normals, and an sRGB colour behind each vertex.

    The colours are a convention of MeshLab, Blender and others, outside the format's definition;
    they are not converted to linear light there.
    """
    import trimesh

    solid = _as_trimesh(mesh)
    solid.visual.vertex_colors = np.rint(mesh.rgb * 255).astype(np.uint8)
    text = trimesh.exchange.obj.export_obj(solid, include_normals=True, include_color=True)
    return str(text).encode()


def linear_from_srgb(srgb: NDArray[np.float32]) -> NDArray[np.float64]:
    """Undoes the sRGB transfer function (IEC 61966-2-1); both sides in 0..1."""
    values = srgb.astype(np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _as_trimesh(mesh: TriangleMesh) -> "trimesh.Trimesh":
    import trimesh

    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=mesh.normals, process=False)
