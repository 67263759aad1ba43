"""PLY, the plain asset format of 3D Gaussian Splatting (Kerbl et al. 2023).

One vertex element, one row per Gaussian, float32 properties in the order of the original release:
x y z, nx ny nz (zeros), f_dc_0..2, [f_rest_*], opacity, scale_0..2, rot_0..3. Values are raw:
opacity before the sigmoid, natural-log scales, quaternions w x y z.

What is written is what the strictest known reader takes (the SPZ compressor that the subnet's
validators run): binary little-endian, `float`, LF line ends, no comments. What is read is wider,
but never guessed at: a file that contradicts itself is refused with the line, row or property.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from protocol import _ply_header
from protocol.errors import CodecError
from protocol.gaussians import LOGIT_LIMIT, Float32Array, GaussianCloud

_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "positions": ("x", "y", "z"),
    "colors_dc": ("f_dc_0", "f_dc_1", "f_dc_2"),
    "opacity_logits": ("opacity",),
    "log_scales": ("scale_0", "scale_1", "scale_2"),
    "rotations": ("rot_0", "rot_1", "rot_2", "rot_3"),
}
_NORMALS = ("nx", "ny", "nz")
_REST_COUNTS = (0, 9, 24, 45)
_SHOWN_CHARACTERS = 40

_Columns = Mapping[str, NDArray[Any]]


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


def decode(data: bytes, *, max_points: int = 10_000_000) -> GaussianCloud:
    """Decodes a 3DGS PLY file: ASCII or binary of either byte order, with or without normals.

    Properties may come in any order. Those of a Gaussian must be float or double (rounded to
    float32); normals and unknown properties of any scalar type are ignored. f_rest_* is checked
    for completeness and dropped, with a warning in the log, as a `GaussianCloud` carries degree 0
    only. Comments are accepted.

    Args:
        data: The whole file.
        max_points: The most Gaussians to accept.

    Returns:
        The cloud, values as in the file except that infinite opacity logits, which SPZ decoders
        write for alpha 0 and 255, become -10 and +10.

    Raises:
        CodecError: The file is no such PLY, its body is shorter or longer than its header says, or
            a value is NaN or infinite. The message names the line, or the row (from 0) and
            property.
    """
    header = _ply_header.parse(data)
    if not 1 <= header.count <= max_points:
        raise CodecError(
            f"the PLY header claims {header.count} Gaussians; 1 to {max_points} are accepted"
        )
    _check_properties(header.properties)
    columns = _binary_columns(data, header) if header.byte_order else _ascii_columns(data, header)
    attributes = {
        attribute: np.stack([_finite_column(columns, name) for name in names], axis=1)
        for attribute, names in _COLUMNS.items()
    }
    attributes["opacity_logits"] = attributes["opacity_logits"][:, 0]
    return GaussianCloud(**attributes)


def _check_properties(properties: dict[str, str]) -> None:
    for name in (name for names in _COLUMNS.values() for name in names):
        if name not in properties:
            raise CodecError(f"the PLY header has no property {name}; found {_shown(properties)}")
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


def _binary_columns(data: bytes, header: _ply_header.Header) -> _Columns:
    row = np.dtype([(name, header.byte_order + code) for name, code in header.properties.items()])
    found, expected = len(data) - header.size, header.count * row.itemsize
    if found != expected:
        raise CodecError(
            f"the PLY body has {found} bytes, {header.count} rows of {row.itemsize} bytes take "
            f"{expected}: it ends in row {found // row.itemsize}"
        )
    table = np.frombuffer(data, row, offset=header.size)
    return {name: table[name] for name in header.properties}


def _ascii_columns(data: bytes, header: _ply_header.Header) -> _Columns:
    body = data[header.size :].rstrip(b"\n")
    found = body.count(b"\n") + 1
    if found != header.count:
        raise CodecError(f"the PLY body has {found} lines, the header says {header.count}")
    # Only what a Gaussian needs is kept, so that thousands of properties cost no memory.
    columns = {name: np.empty(header.count) for names in _COLUMNS.values() for name in names}
    for row, line in enumerate(body.decode("latin-1").split("\n")):
        where = f"PLY line {header.lines + 1 + row} (row {row})"
        tokens = line.split()
        if len(tokens) != len(header.properties):
            raise CodecError(f"{where} has {len(tokens)} values, expected {len(header.properties)}")
        for name, token in zip(header.properties, tokens, strict=True):
            try:
                value = float(token)
            except ValueError as error:
                raise CodecError(
                    f"{where}, property {name}: {token[:_SHOWN_CHARACTERS]!r} is not a number"
                ) from error
            if name in columns:
                columns[name][row] = value
    return columns


def _finite_column(columns: _Columns, name: str) -> Float32Array:
    """Returns one property as float32 (N,), checked."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: Float32Array = columns[name].astype(np.float32)
    if name == "opacity":
        infinite = np.isinf(values)
        values[infinite] = np.copysign(np.float32(LOGIT_LIMIT), values[infinite])
    finite = np.isfinite(values)
    if not finite.all():
        row = int(np.argmin(finite))
        raise CodecError(
            f"PLY row {row}, property {name} is {columns[name][row]}; it must be a finite float32 "
            f"({len(values) - int(finite.sum())} such rows in all)"
        )
    return values


def _shown(properties: dict[str, str]) -> str:
    text = " ".join(properties) or "none"
    return text if len(text) <= 5 * _SHOWN_CHARACTERS else text[: 5 * _SHOWN_CHARACTERS] + "..."
