"""JPEG files (ITU-T T.81, T.872): their size, and their picture without the rest."""

import re
import struct
from collections.abc import Iterator
from contextlib import suppress

from protocol._stripped import Stripped, exif_orientation
from protocol.errors import TaskError

SIGNATURE = b"\xff\xd8\xff"
MAX_SEGMENTS = 4096
"""A camera writes some ten segments, a large colour profile a hundred more."""

MAX_SCANS = 100
MAX_VISITS = 24
"""How often all scans together may visit the samples of one component of the largest picture. The
usual progressive file of three components makes 14 such visits, one of four components 24. A scan
that changes nothing takes 33 bytes, and the decoder walks through its whole component for it."""

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_APP0, _APP1, _APP2, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xEE, 0xFE
_METADATA = frozenset({*range(0xE0, 0xF0), _COM, _SOI, 0x01})
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ICC = b"ICC_PROFILE\x00"
_MARKER = re.compile(rb"\xff(?![\x00\xd0-\xd7\xff])")
"""The end of a scan's data, or of stray bytes: neither a stuffed byte nor a restart."""


def read_size(data: bytes) -> tuple[int, int]:
    """Reads width and height in pixels.

    Raises:
        TaskError: There is no size, or it comes too late.
        struct.error, IndexError: The file ends before it.
    """
    for marker, start, _ in _segments(data, "without a size in its first"):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, start + 5)
            return width, height
    raise TaskError("image is a JPEG without a picture; send a sound file")


def check(data: bytes, pixels: int) -> None:
    """Raises TaskError if the file takes a decoder too long, or is of a kind that none reads.

    Args:
        data: The file.
        pixels: Width x height of the largest picture that is accepted.
    """
    components: dict[int, int] = {}
    scans = blocks = 0
    # A file may end anywhere: what is counted until then is all that the decoder can read.
    with suppress(struct.error, IndexError):
        for marker, start, _ in _segments(data, "with more than"):
            if marker in _FRAMES:
                if marker not in _HUFFMAN_FRAMES:
                    raise TaskError(
                        "image is a lossless, hierarchical or arithmetic-coded JPEG; save it as "
                        "baseline or progressive"
                    )
                components = _blocks(data, start)
            elif marker == _SOS:
                scans += 1
                ids = data[start + 5 : start + 5 + 2 * data[start + 4] : 2]
                blocks += sum(components.get(name, 0) for name in ids)
    if scans > MAX_SCANS:
        raise TaskError(
            f"image is a JPEG of {scans} scans, the limit is {MAX_SCANS}; save it again"
        )
    if 64 * blocks > MAX_VISITS * pixels:
        raise TaskError(
            f"image is a JPEG whose {scans} scans visit {64 * blocks} samples, the limit is "
            f"{MAX_VISITS * pixels}; save it again, or smaller"
        )


def strip(data: bytes) -> Stripped:
    """Takes the picture out of a JPEG file.

    Only a JFIF and an Adobe marker stay, since they tell how colours are coded. Whatever follows
    the picture is left out: a phone's depth map, a film, a second picture.

    Raises:
        TaskError: As `check`.
    """
    size = read_size(data)
    parts = [SIGNATURE[:2]]
    orientation = 1
    profile: dict[int, bytes] = {}
    # The decoder refuses a file that is cut short, unless it has all that it needs.
    with suppress(struct.error, IndexError):
        for marker, start, end in _segments(data, "with more than"):
            if marker not in _METADATA:
                parts.append(data[start:end])
                continue
            body = data[start + 4 : end]
            if marker == _APP0 and body.startswith(b"JFIF\x00"):
                parts.append(_JFIF)
            elif marker == _APP14 and body.startswith(b"Adobe") and len(body) >= 12:
                parts.append(b"\xff\xee\x00\x0e" + body[:12])
            elif marker == _APP1 and body.startswith(b"Exif\x00") and orientation == 1:
                orientation = exif_orientation(body)
            elif marker == _APP2 and body.startswith(_ICC) and len(body) > len(_ICC) + 2:
                profile.setdefault(body[len(_ICC)], body[len(_ICC) + 2 :])
    ordered = b"".join(profile[number] for number in sorted(profile))
    return Stripped(b"".join(parts), size, profile=ordered, orientation=orientation)


def _segments(data: bytes, fault: str) -> Iterator[tuple[int, int, int]]:
    """Yields marker, start and end of each segment; a scan's segment ends after its data.

    Args:
        data: The file.
        fault: What is wrong with a file of too many segments.
    """
    offset = 2
    for _ in range(MAX_SEGMENTS):
        if data[offset] != 0xFF:  # Stray bytes; every decoder passes over them.
            found = _MARKER.search(data, offset)
            if found is None:
                raise TaskError(
                    "image is a damaged JPEG: no marker where one must be; send a sound file"
                )
            offset = found.start()
        marker = data[offset + 1]
        if marker == 0xFF:  # Fill byte.
            offset += 1
            continue
        if marker in _WITHOUT_LENGTH or marker == _EOI:
            end = offset + 2
        else:
            end = offset + 2 + max(2, struct.unpack_from(">H", data, offset + 2)[0])
        if marker == _SOS:
            found = _MARKER.search(data, end)
            end = found.start() if found else len(data)
        yield marker, offset, end
        if marker == _EOI:
            return
        offset = end
    raise TaskError(f"image is a JPEG {fault} {MAX_SEGMENTS} segments; send a sound file")


def _blocks(data: bytes, start: int) -> dict[int, int]:
    """Blocks of 8 x 8 samples in each component of a frame, by its id."""
    height, width, count = struct.unpack_from(">HHB", data, start + 5)
    components = {
        data[place]: (max(1, data[place + 1] >> 4), max(1, data[place + 1] & 15))
        for place in range(start + 10, start + 10 + 3 * count, 3)
    }
    across = 8 * max((wide for wide, _ in components.values()), default=1)
    down = 8 * max((high for _, high in components.values()), default=1)
    return {
        name: -(-width * wide // across) * -(-height * high // down)
        for name, (wide, high) in components.items()
    }
