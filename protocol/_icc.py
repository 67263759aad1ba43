"""Colours to sRGB through ICC profiles (ICC.1:2022), with LittleCMS.

A profile comes from a stranger, so LittleCMS only sees the tags that it needs, and only if their
tables are where and as large as they claim.
"""

import math
import struct
from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
"""The largest profile that is read; those of presses have 0.5 to 3 MB. A larger one is ignored."""

_HEADER_BYTES = 128
_MAX_TAGS = 256
_CLASSES = frozenset({b"mntr", b"scnr", b"prtr", b"spac"})
_CHANNELS = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}
_MODES = {b"GRAY": "L", b"RGB ": "RGB", b"CMYK": "CMYK"}
_CURVES = frozenset({b"curv", b"para"})
_TAGS = {
    b"wtpt": frozenset({b"XYZ "}),
    b"rXYZ": frozenset({b"XYZ "}),
    b"gXYZ": frozenset({b"XYZ "}),
    b"bXYZ": frozenset({b"XYZ "}),
    b"rTRC": _CURVES,
    b"gTRC": _CURVES,
    b"bTRC": _CURVES,
    b"kTRC": _CURVES,
    b"A2B0": frozenset({b"mft1", b"mft2", b"mAB "}),
}
_SAME = 2
"""A profile that changes no colour by more levels than this is sRGB in all but rounding."""

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
_LARGEST_EXPONENT = 5.0
_LARGEST_XYZ = 8.0


@dataclass(frozen=True)
class Primaries:
    """Chromaticities x, y (CIE 1931) of an RGB space."""

    white: tuple[float, float]
    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts a picture from the colour space of its profile to sRGB.

    Args:
        image: RGB, RGBA or CMYK.
        profile: An ICC profile. One that is damaged, is sRGB, or is for another kind of picture is
            ignored; one for grey fits what has no other colours.

    Returns:
        RGB or RGBA of the same size; CMYK stays CMYK if there is no profile for it.
    """
    trimmed = _trimmed(profile)
    if trimmed is None:
        return image
    mode = _MODES[trimmed[16:20]]
    if (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and not _is_grey(image)):
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(trimmed))
        if mode == "L":
            ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
            levels = _transform(source, "L", "RGB").apply(ramp).getchannel(1).tobytes()
            table = list(levels) * 3 + list(range(256)) * (image.mode == "RGBA")
            return image.point(table)
        if mode == "RGB":
            probe = _probe()
            exact = _transform(source, "RGB", "RGB", ImageCms.Flags.NOOPTIMIZE)
            seen = exact.apply(probe)
            change = np.abs(np.asarray(seen, np.int16) - np.asarray(probe, np.int16))
            if change.max() <= _SAME:
                return image
        target = "RGB" if mode == "CMYK" else image.mode
        return _transform(source, image.mode, target).apply(image)
    # LittleCMS refuses a profile in one of several ways; then nothing is known about the colours.
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (channel.tobytes() for channel in image.split()[:3])
    return red == green == blue


def matrix_profile(primaries: Primaries, exponent: float | None) -> bytes:
    """Makes the ICC profile of an RGB space.

    Args:
        primaries: Its white and primaries.
        exponent: From encoded to linear light; None for the curve of sRGB.

    Returns:
        The profile; empty if the values describe no colour space.
    """
    columns = _adapted(primaries)
    if columns is None or not (exponent is None or 0.2 <= exponent <= _LARGEST_EXPONENT):
        return b""
    if exponent is None:
        curve = _parameters(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    else:
        curve = _parameters(0, exponent)
    tags = {
        name: b"XYZ \x00\x00\x00\x00" + _fixed(*column)
        for name, column in zip(
            (b"rXYZ", b"gXYZ", b"bXYZ", b"wtpt"), (*columns.T, _D50), strict=True
        )
    }
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    header = struct.pack(
        ">4xI I4s4s4s 12x4s 28x12s",
        0,
        0x04000000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        _fixed(*_D50),
    )
    return _assembled(header.ljust(_HEADER_BYTES, b"\x00"), tags)


def _trimmed(profile: bytes) -> bytes | None:
    """The profile with the tags that are needed to leave its space; None if it cannot be used."""
    header = profile[:_HEADER_BYTES]
    if len(profile) < _HEADER_BYTES + 4 or len(profile) > MAX_PROFILE_BYTES:
        return None
    space, pcs = header[16:20], header[20:24]
    if header[36:40] != b"acsp" or header[12:16] not in _CLASSES:
        return None
    if space not in _CHANNELS or pcs not in (b"XYZ ", b"Lab "):
        return None
    (count,) = struct.unpack_from(">I", profile, _HEADER_BYTES)
    if count > _MAX_TAGS or len(profile) < _HEADER_BYTES + 4 + 12 * count:
        return None
    tags: dict[bytes, bytes] = {}
    for index in range(count):
        name, start, size = struct.unpack_from(">4sII", profile, _HEADER_BYTES + 4 + 12 * index)
        body = profile[start : start + size]
        if name in _TAGS and name not in tags and len(body) == size and body[:4] in _TAGS[name]:
            tags[name] = body
    if b"A2B0" in tags and not _table_fits(tags[b"A2B0"], _CHANNELS[space]):
        del tags[b"A2B0"]
    return _assembled(header, tags)


def _table_fits(tag: bytes, channels: int) -> bool:
    """Whether a look-up table is as large as its header says; LittleCMS allocates what it says."""
    if len(tag) < 32 or tag[8] != channels or tag[9] != 3:
        return False
    if tag[:4] != b"mAB ":
        width = 1 if tag[:4] == b"mft1" else 2
        needed: int = width * 3 * tag[10] ** channels
        return needed <= len(tag)
    place: int = struct.unpack_from(">I", tag, 24)[0]
    grid = tag[place : place + 16]
    needed = 3 * math.prod(grid[:channels])
    return place == 0 or (len(grid) == 16 and needed <= len(tag))


def _assembled(header: bytes, tags: dict[bytes, bytes]) -> bytes:
    directory = struct.pack(">I", len(tags))
    place, bodies = _HEADER_BYTES + 4 + 12 * len(tags), b""
    for name, body in tags.items():
        directory += struct.pack(">4sII", name, place + len(bodies), len(body))
        bodies += body.ljust(-(-len(body) // 4) * 4, b"\x00")
    return struct.pack(">I", place + len(bodies)) + header[4:] + directory + bodies


def _transform(
    source: ImageCms.ImageCmsProfile,
    mode: str,
    target: str,
    flags: ImageCms.Flags = ImageCms.Flags.NONE,
) -> ImageCms.ImageCmsTransform:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return ImageCms.ImageCmsTransform(source, srgb, mode, target, flags=flags)


@cache
def _probe() -> Image.Image:
    """9 x 9 x 9 colours, evenly spaced."""
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    return Image.fromarray(colours.reshape(9, 81, 3))


def _adapted(primaries: Primaries) -> NDArray[np.float64] | None:
    """(3, 3) columns red, green, blue in XYZ, seen under D50; None if there is no such space."""
    places = (primaries.red, primaries.green, primaries.blue, primaries.white)
    if any(y <= 0 for _, y in places):
        return None
    red, green, blue, white = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in places)
    columns = np.stack([red, green, blue], axis=1)
    try:
        columns = columns * np.linalg.solve(columns, white)
        cone, cone_d50 = _BRADFORD @ white, _BRADFORD @ np.array(_D50)
        columns = np.linalg.solve(_BRADFORD, (cone_d50 / cone)[:, None] * (_BRADFORD @ columns))
    except np.linalg.LinAlgError:
        return None
    return columns if np.abs(columns).max() < _LARGEST_XYZ else None


def _parameters(kind: int, *values: float) -> bytes:
    return struct.pack(">4s4xHxx", b"para", kind) + _fixed(*values)


def _fixed(*values: float) -> bytes:
    """Numbers as s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))
