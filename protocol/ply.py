"""PLY, the plain asset format of 3D Gaussian Splatting (Kerbl et al. 2023).

One vertex element, one row per Gaussian, float32 properties in the order of the original release:
x y z, nx ny nz (zeros), f_dc_0..2, [f_rest_*], opacity, scale_0..2, rot_0..3. Values are raw:
opacity before the sigmoid, natural-log scales, quaternions w x y z.

What is written is what the strictest known reader takes (the SPZ compressor that the subnet's
validators run): binary little-endian, `float`, LF line ends, no comments. What is read is wider,
but never guessed at: a file that contradicts itself is refused with the line, row or property.
"""

from typing import Any, Final

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from protocol import _ply_header, _ply_rows
from protocol.errors import CodecError
from protocol.foreign_formats import describe, is_compressed_ply
from protocol.gaussians import LOGIT_LIMIT, MAX_GAUSSIANS, Float32Array, GaussianCloud
from protocol.text import printable

MAX_TEXT_BYTES: Final = 8 << 20
"""The largest ASCII body that is decoded if the caller does not say otherwise. Text costs a hundred
times as much as binary."""

_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "positions": ("x", "y", "z"),
    "colors_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity_logits": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "rotations": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_NORMALS = ("nx", "ny", "nz")
_REST_COUNTS = (0, 9, 24, 45)
_SHOWN_CHARACTERS = 200


def encode(cloud: GaussianCloud, *, normals: bool = True) -> bytes:
    """Encodes a cloud as a binary little-endian PLY file.

    Args:
        cloud: At least one Gaussian; order and values are kept bit for bit.
        normals: Whether to write nx ny nz (zeros), which some viewers insist on. 68 bytes per
            Gaussian with them, 56 without.

    Raises:
        CodecError: The cloud is empty; readers of the format refuse such a file.
    """
    count = len(cloud)
    if count == 0:
        raise CodecError("a PLY file needs at least one Gaussian, the cloud has 0")
    names = [name for columns in _COLUMNS.values() for name in columns]
    if normals:
        names[3:3] = _NORMALS
    table = np.zeros((count, len(names)), dtype="<f4")
    for attribute, columns in _COLUMNS.items():
        start = names.index(columns[0])
        values = getattr(cloud, attribute).reshape(count, len(columns))
        table[:, start : start + len(columns)] = values
    header = "\n".join(
        [
            "ply",
            "format binary_little_endian 1.0",
            f"element vertex {count}",
            *(f"property float {name}" for name in names),
            "end_header\n",
        ]
    )
    return b"".join([header.encode("ascii"), table.data])


def decode(
    data: bytes, *, max_points: int = MAX_GAUSSIANS, max_text_bytes: int = MAX_TEXT_BYTES
) -> GaussianCloud:
    """Decodes a 3DGS PLY file: ASCII or binary of either byte order, with or without normals.

    Properties may come in any order. Those of a Gaussian must be float or double (rounded to
    float32); normals and unknown properties of any scalar type are ignored. f_rest_* is checked
    for completeness and dropped, with a warning in the log, as a `GaussianCloud` carries degree 0
    only. Comments are accepted.

    Args:
        data: The whole file.
        max_points: The most Gaussians to accept.
        max_text_bytes: The largest ASCII body to accept.

    Returns:
        The cloud, values as in the file except that infinite opacity logits, which SPZ decoders
        write for alpha 0 and 255, become -10 and +10.

    Raises:
        CodecError: The file is no such PLY, its body is shorter or longer than its header says, or
            a value is NaN or infinite. The message names the line and column, or the row (from 0)
            and property.
    """
    if is_compressed_ply(data):
        raise CodecError(f"not rows of Gaussians but {describe(data)}")
    header = _ply_header.parse(data)
    if not 1 <= header.count <= max_points:
        raise CodecError(
            f"the PLY header claims {header.count} Gaussians; 1 to {max_points} are accepted"
        )
    _check_properties(header.properties)
    rows = (
        _ply_rows.binary_rows(data, header)
        if header.byte_order
        else _ply_rows.text_rows(data, header, max_text_bytes)
    )
    attributes: dict[str, Float32Array] = {}
    for start, columns in rows:
        if not attributes:  # only now is the body known to be as long as the header says
            attributes = {
                attribute: np.empty((header.count, len(names)), np.float32)
                for attribute, names in _COLUMNS.items()
            }
        for attribute, names in _COLUMNS.items():
            for place, name in enumerate(names):
                values = _finite(columns[name], name, start)
                attributes[attribute][start : start + len(values), place] = values
    attributes["opacity_logits"] = attributes["opacity_logits"][:, 0]
    return GaussianCloud(**attributes)


def _check_properties(properties: dict[str, str]) -> None:
    for name in (name for names in _COLUMNS.values() for name in names):
        if name not in properties:
            found = printable(" ".join(properties) or "none", _SHOWN_CHARACTERS)
            raise CodecError(
                f"the PLY header has no property {name}; found {found}{_other_contents(properties)}"
            )
        if properties[name] not in ("f4", "f8"):
            raise CodecError(
                f"PLY property {name} has an integer type; a Gaussian's values are float or double"
            )
    rest = {name for name in properties if name.startswith("f_rest_")}
    if len(rest) not in _REST_COUNTS or rest != {f"f_rest_{i}" for i in range(len(rest))}:
        raise CodecError(
            f"the PLY header has {len(rest)} f_rest properties; f_rest_0 up to _8, _23 or _44 "
            "without a gap are expected, or none"
        )
    if rest:
        logger.warning("PLY: dropped {} f_rest properties; only f_dc is kept", len(rest))


def _other_contents(properties: dict[str, str]) -> str:
    if "f_dc_0" not in properties and "red" in properties:
        return " (a coloured point cloud or mesh, not Gaussians)"
    return ""


def _finite(column: NDArray[Any], name: str, start: int) -> Float32Array:
    """Returns one property of some rows as float32, checked; the first row's number is `start`."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: Float32Array = column.astype(np.float32)
    if name == "opacity":
        infinite = np.isinf(values)
        values[infinite] = np.copysign(np.float32(LOGIT_LIMIT), values[infinite])
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CodecError(
            f"PLY row {start + row}, property {name} is {column[row]}; it must be a finite float32"
        )
    return values
