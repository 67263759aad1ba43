"""WebP files (RFC 9649): their size, and their picture without the rest."""

import struct
from collections.abc import Iterator

from protocol._stripped import Stripped, exif_orientation
from protocol._vp8l import check_groups
from protocol.errors import TaskError
from protocol.text import printable

MAX_CHUNKS = 16_384
_ALPHA = 0x10
_FRAME_HEADER = 16
_VP8L_HEADER = 5
_COMPRESSED = 1


def read_size(data: bytes) -> tuple[int, int]:
    """Reads width and height in pixels of the canvas.

    Raises:
        TaskError: The first chunk is none of a picture.
        struct.error: The file ends inside its header.
    """
    name = data[12:16]
    if name == b"VP8X":
        return _int24(data, 24) + 1, _int24(data, 27) + 1
    if name in (b"VP8 ", b"VP8L"):
        return _picture_size(data, name, 20)
    raise TaskError(
        "image is a WebP without a picture (its first chunk is "
        f"{printable(name.decode('latin-1'))!r}); send a sound file"
    )


def check(data: bytes, pixels: int) -> None:
    """Raises TaskError if the file has too many chunks; any number of pixels is as good."""
    for _ in _chunks(data, 12, _end(data)):
        pass


def strip(data: bytes) -> Stripped:
    """Takes the picture, or the first frame, out of a WebP file.

    Raises:
        TaskError: There is no picture, it is cut short, or a decoder could not afford it.
        struct.error, IndexError: It ends inside a header.
    """
    canvas = read_size(data)
    found: dict[bytes, tuple[int, int]] = {}
    for name, start, length in _chunks(data, 12, _end(data)):
        found.setdefault(name, (start, length))
    place = (0, 0)
    frame = found.get(b"ANMF")
    if frame is not None and not found.keys() & {b"VP8 ", b"VP8L"}:
        start, length = frame
        place = 2 * _int24(data, start), 2 * _int24(data, start + 3)
        end = min(len(data), start + length)
        for name, inner, inner_length in _chunks(data, start + _FRAME_HEADER, end):
            found.setdefault(name, (inner, inner_length))
    coding = next((name for name in (b"VP8L", b"VP8 ") if name in found), None)
    if coding is None:
        raise TaskError("image is a WebP without a picture; send a sound file")
    size = _picture_size(data, coding, found[coding][0])
    content = _content(data, found[coding])
    picture = _chunk(coding, content)
    if coding == b"VP8L":
        check_groups(content[_VP8L_HEADER:], *size)
    elif b"ALPH" in found:
        alpha = _content(data, found[b"ALPH"])
        if alpha[0] & 3 == _COMPRESSED:
            check_groups(alpha[1:], *size)
        sides = (side.to_bytes(3, "little") for side in (size[0] - 1, size[1] - 1))
        extended = _chunk(b"VP8X", struct.pack("<I", _ALPHA) + b"".join(sides))
        picture = extended + _chunk(b"ALPH", alpha) + picture
    metadata = {
        name: data[found[name][0] : sum(found[name])] if name in found else b""
        for name in (b"ICCP", b"EXIF")
    }
    return Stripped(
        file=b"RIFF" + struct.pack("<I", 4 + len(picture)) + b"WEBP" + picture,
        size=size,
        profile=metadata[b"ICCP"],
        orientation=exif_orientation(metadata[b"EXIF"]),
        canvas=None if size == canvas and place == (0, 0) else (*place, *canvas),
    )


def _end(data: bytes) -> int:
    """Where the file ends by its own header; what follows is left out."""
    (length,) = struct.unpack_from("<I", data, 4)
    return min(len(data), 8 + int(length))


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields name, start of the content and its length."""
    for _ in range(MAX_CHUNKS):
        if start + 8 > end:
            return
        name, length = struct.unpack_from("<4sI", data, start)
        yield name, start + 8, length
        start += 8 + length + length % 2
    raise TaskError(f"image is a WebP of more than {MAX_CHUNKS} chunks; save it again")


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\x00" * (len(content) % 2)


def _content(data: bytes, place: tuple[int, int]) -> bytes:
    start, length = place
    if start + length > len(data):
        raise TaskError(
            f"image cannot be decoded as WEBP: it ends inside its picture ({len(data)} bytes); "
            "send a whole file"
        )
    return data[start : start + length]


def _picture_size(data: bytes, coding: bytes, start: int) -> tuple[int, int]:
    if coding == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, start + 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = struct.unpack_from("<HH", data, start + 6)
    return width & 0x3FFF, height & 0x3FFF


def _int24(data: bytes, start: int) -> int:
    low, high = struct.unpack_from("<HB", data, start)
    return int(low | high << 16)
