"""PNG files (ISO/IEC 15948, third edition): their size, and their picture without the rest."""

import struct
import zlib
from collections.abc import Iterator

from protocol._icc import MAX_PROFILE_BYTES, Primaries, matrix_profile
from protocol._stripped import Stripped, exif_orientation
from protocol.errors import TaskError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 16_384
"""Encoders write the pixels in chunks of 8 KB or more: some 800 in the largest file."""

_GREY, _RGB, _PALETTE = 0, 2, 3
_USED = frozenset(
    {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP", b"eXIf"}
)
_CRITICAL = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})

# ITU-T H.273: colour primaries, and transfer characteristics as an exponent (None: that of sRGB).
_H273_PRIMARIES = {
    1: Primaries((0.3127, 0.3290), (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: Primaries((0.3127, 0.3290), (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: Primaries((0.3140, 0.3510), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: Primaries((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_H273_EXPONENTS = {4: 2.2, 5: 2.8, 8: 1.0, 13: None}
_SRGB_PRIMARIES = _H273_PRIMARIES[1]
_SRGB_GAMMA, _GAMMA_TOLERANCE = 1 / 2.2, 0.05


def read_size(data: bytes) -> tuple[int, int]:
    """Reads width and height in pixels.

    Raises:
        TaskError: The file does not begin with its header.
        struct.error: It ends inside the header.
    """
    width, height = struct.unpack_from(">II", data, 16)
    if data[12:16] != b"IHDR":
        raise TaskError("image is a PNG that does not begin with IHDR; save it again")
    return width, height


def check(data: bytes, pixels: int) -> None:
    """Raises TaskError if the file has too many chunks; any number of pixels is as good."""
    for _ in _chunks(data):
        pass


def strip(data: bytes) -> Stripped:
    """Takes the picture out of a PNG file.

    Raises:
        TaskError: A chunk of the picture is cut short or damaged.
        struct.error: The header is cut short.
    """
    size = read_size(data)
    found: dict[bytes, bytes] = {}
    pixels = []
    for name, start, length in _chunks(data):
        if name not in _USED or (name != b"IDAT" and name in found):
            continue
        body = data[start : start + length]
        if name in _CRITICAL:
            _check_sum(data, name, body, start + length)
        if name == b"IDAT":
            pixels.append(body)
        else:
            found[name] = body
    depth, kind = struct.unpack_from(">BB", found[b"IHDR"], 8)
    transparent = found.get(b"tRNS", b"")
    parts = [SIGNATURE, _chunk(b"IHDR", found[b"IHDR"])]
    if kind == _PALETTE:
        parts += [_chunk(name, found[name]) for name in (b"PLTE", b"tRNS") if found.get(name)]
    parts += [_chunk(b"IDAT", b"".join(pixels)), _chunk(b"IEND", b"")]
    return Stripped(
        file=b"".join(parts),
        size=size,
        profile=_profile(found),
        orientation=exif_orientation(found.get(b"eXIf", b"")),
        key=_key(kind, depth, transparent),
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start of the content and its length, up to the end of the picture."""
    offset, end = len(SIGNATURE), len(data)
    for _ in range(MAX_CHUNKS):
        if offset + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, offset)
        if name == b"IEND":
            return
        yield name, offset + 8, length
        offset += 12 + length
    raise TaskError(f"image is a PNG of more than {MAX_CHUNKS} chunks; save it again")


def _check_sum(data: bytes, name: bytes, body: bytes, end: int) -> None:
    stored = data[end : end + 4]
    if len(stored) < 4:
        raise TaskError(
            f"image cannot be decoded as PNG: it ends inside its {name.decode()} chunk; send a "
            "whole file"
        )
    if int.from_bytes(stored, "big") != zlib.crc32(body, zlib.crc32(name)):
        raise TaskError(
            f"image cannot be decoded as PNG: its {name.decode()} chunk is damaged; send a "
            "sound file"
        )


def _chunk(name: bytes, body: bytes) -> bytes:
    check = zlib.crc32(body, zlib.crc32(name))
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def _key(kind: int, depth: int, transparent: bytes) -> int | tuple[int, int, int] | None:
    """The transparent grey or colour in the levels of Pillow: 16 bits for grey of 16, else 8."""
    if kind == _GREY and len(transparent) >= 2:
        grey = int.from_bytes(transparent[:2], "big") & (1 << depth) - 1
        return grey if depth == 16 else grey * 255 // ((1 << depth) - 1)
    if kind == _RGB and len(transparent) >= 6:
        red, green, blue = struct.unpack(">HHH", transparent[:6])
        shift = 8 if depth == 16 else 0
        return red >> shift & 255, green >> shift & 255, blue >> shift & 255
    return None


def _profile(found: dict[bytes, bytes]) -> bytes:
    """The colour space as an ICC profile, by the standard's order of precedence (section 4.3)."""
    coded = found.get(b"cICP", b"")
    if len(coded) == 4 and coded[0] in _H273_PRIMARIES and coded[1] in _H273_EXPONENTS:
        return matrix_profile(_H273_PRIMARIES[coded[0]], _H273_EXPONENTS[coded[1]])
    if b"iCCP" in found:
        return _inflated(found[b"iCCP"].partition(b"\x00")[2][1:])
    if b"sRGB" in found or not found.keys() & {b"gAMA", b"cHRM"}:
        return b""
    primaries, exponent = _SRGB_PRIMARIES, None
    if len(found.get(b"gAMA", b"")) == 4:
        gamma = int.from_bytes(found[b"gAMA"], "big") / 100_000
        if abs(gamma / _SRGB_GAMMA - 1) > _GAMMA_TOLERANCE:
            exponent = 1 / gamma if gamma else 0.0
    if len(found.get(b"cHRM", b"")) == 32:
        values = [value / 100_000 for value in struct.unpack(">8I", found[b"cHRM"])]
        primaries = Primaries(*zip(values[::2], values[1::2], strict=True))
    return matrix_profile(primaries, exponent)


def _inflated(stream: bytes) -> bytes:
    """The profile, or nothing if it is damaged or too large."""
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(stream, MAX_PROFILE_BYTES)
    except zlib.error:
        return b""
    return profile if unpacker.eof else b""
