"""What is left of an image file once everything that is not its picture is taken out."""

import struct
from dataclasses import dataclass

_ORIENTATION = 0x0112
_SHORT, _LONG = 3, 4
_MAX_TAGS = 1024


@dataclass(frozen=True)
class Stripped:
    """A picture, its colour space and its orientation: all that a decoder needs to see.

    Metadata is not handed on, so no metadata can make a decoder fail or slow it down.

    Attributes:
        file: The encoded picture in its own format, without metadata; of an animation, the first
            frame.
        size: Width and height in pixels of the encoded picture.
        profile: ICC profile of its colours, as the file has it; empty means sRGB.
        orientation: EXIF orientation, 1..8.
        key: Value of the pixels that are transparent, in the decoder's own levels, if there is one.
        canvas: Left, top, width and height in pixels: where on which canvas the picture lies. None
            if it fills it.
    """

    file: bytes
    size: tuple[int, int]
    profile: bytes = b""
    orientation: int = 1
    key: int | tuple[int, int, int] | None = None
    canvas: tuple[int, int, int, int] | None = None


def exif_orientation(exif: bytes) -> int:
    """Reads the orientation of a picture.

    Args:
        exif: A TIFF structure, with or without "Exif" and two bytes before it (EXIF 2.32, 4.5).

    Returns:
        1..8, the first valid value; 1 (upright) if there is none or the structure is damaged.
    """
    tiff = exif[6:] if exif.startswith(b"Exif\x00") else exif
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, directory)
        for index in range(min(count, _MAX_TAGS)):
            place = directory + 2 + 12 * index
            tag, kind = struct.unpack_from(f"{order}HH", tiff, place)
            if tag == _ORIENTATION and kind in (_SHORT, _LONG):
                form = f"{order}H" if kind == _SHORT else f"{order}I"
                (value,) = struct.unpack_from(form, tiff, place + 8)
                if 1 <= value <= 8:
                    return int(value)
    except struct.error:
        pass
    return 1
