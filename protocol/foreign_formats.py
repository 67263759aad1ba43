"""Names what bytes are that no codec of ours reads, and the tool that converts them.

Only the first bytes and a few marks are looked at; nothing is believed, unpacked past a few bytes
or parsed. A format without a mark of its own is recognised by what its first fields hold, or by
the file's name.
"""

import math
import re
import struct
import zlib
from typing import Final

_SPLAT_TRANSFORM = "`splat-transform FILE out.ply` (npm: @playcanvas/splat-transform) converts it"
_GSBOX = "`gsbox` (github.com/gotoeasy/gsbox) converts it to PLY"
_HEAD_BYTES: Final = 1 << 16
_KSPLAT_HEADER_BYTES: Final = 4096
_KSPLAT: Final = struct.Struct("<IIIIH")
_SPLAT_ROW: Final = struct.Struct("<3f3f4B4B")
_TEXT_BYTES: Final = 256

_COMPRESSED_PLY = re.compile(rb"^(element chunk [0-9]+|property uint packed_\w+)\n", re.MULTILINE)

_MAGICS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"spx", f"SPX of Reall3D; {_GSBOX}"),
    (b"KLUv/", "base64 text of a zstd frame; decode it first"),
    (b"H4sI", "base64 text of a gzip file; decode it first"),
    (b"cGx5C", "base64 text of a PLY file; decode it first"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"PXR-USDC", "a USD scene"),
    (b"\x93NUMPY", "a NumPy array"),
)


def describe(data: bytes, name: str = "") -> str:
    """Says in a few words what a file is, with the way to a PLY where there is one.

    Args:
        data: The whole file, or its beginning.
        name: The file's name, which decides where a format has no mark of its own.

    Returns:
        A phrase such as "a PNG picture", of printable ASCII, at most 200 characters.
    """
    if not data:
        return "an empty file"
    if data[:2] == b"\x1f\x8b":
        return _gzip(data)
    if data[:4] == b"PK\x03\x04":
        return _zip(data)
    if data[:4] == b"glTF":
        return _gltf(data, "GLB")
    if data[:4] == b"NGSP":
        return _bare_spz(data)
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return "a zstd frame"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "a WebP picture"
    if data[:3] == b"ply":
        return _ply(data)
    for magic, what in _MAGICS:
        if data.startswith(magic):
            return what
    return _unmarked(data, name.lower()) or _text(data) or "bytes of no format known here"


def is_compressed_ply(data: bytes) -> bool:
    """Whether a PLY file holds PlayCanvas' chunks and packed values instead of plain rows."""
    head = data[:_HEAD_BYTES].partition(b"\nend_header\n")[0] + b"\n"
    return bool(_COMPRESSED_PLY.search(head))


def _ply(data: bytes) -> str:
    if is_compressed_ply(data):
        return f"a compressed PLY of PlayCanvas'; {_SPLAT_TRANSFORM}"
    return "a PLY file"


def _gzip(data: bytes) -> str:
    try:
        inside = zlib.decompressobj(wbits=31).decompress(data[:_HEAD_BYTES], 16)
    except zlib.error:
        return "a damaged gzip file"
    if inside[:4] == b"NGSP" and len(inside) >= 8:
        version = int.from_bytes(inside[4:8], "little")
        return f"a gzip SPZ of Niantic's, version {version}; {_SPLAT_TRANSFORM}"
    if inside[:3] == b"ply":
        return "a PLY file packed with gzip; `gunzip` unpacks it"
    return "a gzip file; unpack it first"


def _zip(data: bytes) -> str:
    # File names stand at the beginning of each entry, and in the directory at the end.
    names = data[:_HEAD_BYTES] + data[-_HEAD_BYTES:]
    if b"meta.json" in names and b".webp" in names:
        return f"a SOG bundle of PlayCanvas'; {_SPLAT_TRANSFORM}"
    return "a zip archive; unpack it first"


def _bare_spz(data: bytes) -> str:
    version = int.from_bytes(data[4:8], "little")
    if version >= 4:
        return f"a zstd SPZ of Niantic's, version {version}; {_SPLAT_TRANSFORM}"
    packing = "; `zstd FILE` packs it" if version <= 2 else ""
    return f"an SPZ payload of version {version} without its container{packing}"


def _gltf(data: bytes, kind: str) -> str:
    if b"KHR_gaussian_splatting" in data[:_HEAD_BYTES]:
        return f"a {kind} file with Gaussian splats (KHR_gaussian_splatting); {_GSBOX}"
    return f"a {kind} mesh, not Gaussian splats"


def _unmarked(data: bytes, name: str) -> str | None:
    if _is_ksplat(data) or (name.endswith(".ksplat") and data[0] == 0):
        return f"a .ksplat file (mkkellogg's); {_SPLAT_TRANSFORM}"
    if _is_splat(data) or (name.endswith(".splat") and len(data) % _SPLAT_ROW.size == 0):
        return f"a .splat file (antimatter15's); {_SPLAT_TRANSFORM}"
    return None


def _is_ksplat(data: bytes) -> bool:
    """Whether the fields of a .ksplat header, which has no mark, hold what only they would."""
    if len(data) < _KSPLAT_HEADER_BYTES or data[0] != 0 or not 1 <= data[1] < 10:
        return False
    most_sections, sections, most_splats, splats, level = _KSPLAT.unpack_from(data, 4)
    return bool(1 <= sections <= most_sections and 1 <= splats <= most_splats and level <= 2)


def _is_splat(data: bytes) -> bool:
    """Whether rows of a .splat file, which has no header, hold sizes and unit quaternions."""
    if len(data) % _SPLAT_ROW.size:
        return False
    rows = _SPLAT_ROW.iter_unpack(data[: 32 * _SPLAT_ROW.size])
    return all(
        all(abs(value) < 1e6 for value in row[:3])
        and all(0.0 < size < 1e6 for size in row[3:6])
        and 0.9 < math.hypot(*((byte - 128) / 128 for byte in row[-4:])) < 1.1
        for row in rows
    )


def _text(data: bytes) -> str | None:
    head = data[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    start = head[:_TEXT_BYTES].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page, perhaps the error page of a server"
    if start.startswith(b"<?xml"):
        return "an XML text, perhaps the error of a server"
    if start.startswith((b"{", b"[")):
        if b'"means"' in head and b'"quats"' in head:
            return f"the meta.json of an unbundled SOG; {_SPLAT_TRANSFORM}"
        if b'"asset"' in head and b'"version"' in head:
            return _gltf(head, "glTF")
        return "a JSON text, perhaps the error of a server"
    control = re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)
    return "a text file" if head and control is None else None
