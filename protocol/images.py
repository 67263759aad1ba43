"""Image prompts: what a caller's file claims to be, and its pixels once the claim is affordable.

The size is read from the header before any decoder runs, because a file of 20 KB can unfold to
hundreds of megabytes. Layouts: PNG (ISO/IEC 15948, IHDR), JPEG (ITU-T T.81, SOFn), WebP (RFC 9649).
"""

import struct
from dataclasses import dataclass
from io import BytesIO

from PIL import Image, ImageOps

from protocol.errors import TaskError

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_SIGNATURE = b"\xff\xd8\xff"
_JPEG_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
# A camera writes some ten segments, a large colour profile a hundred more; without a bound, six
# megabytes of empty segments would take a second to walk.
_JPEG_MAX_STEPS = 4096
# A progressive JPEG has some ten scans of the whole picture. A scan that changes nothing takes 33
# bytes, so a hostile file of a few megabytes could keep the decoder busy for many minutes.
_JPEG_START_OF_SCAN = b"\xff\xda"
_JPEG_MAX_SCANS = 100


@dataclass(frozen=True)
class ImageLimits:
    """What an image prompt may be.

    Attributes:
        bytes: Largest file, in bytes.
        pixels: Largest width x height.
        side: Largest width or height, in pixels.
    """

    bytes: int = 6 * 2**20
    pixels: int = 4096 * 4096
    side: int = 8192


@dataclass(frozen=True)
class ImageHeader:
    """Format ("PNG", "JPEG" or "WEBP") and size in pixels, as the file claims them."""

    format: str
    width: int
    height: int


def read_header(data: bytes, limits: ImageLimits | None = None) -> ImageHeader:
    """Reads the format and size of an encoded image and holds them against the limits.

    Args:
        data: A PNG, JPEG or WebP file.
        limits: What is acceptable; the defaults of `ImageLimits` if not given.

    Raises:
        TaskError: Another format, a header that cannot be read, or an image beyond a limit.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.bytes:
        raise TaskError(
            f"image is {len(data)} bytes, the limit is {limits.bytes}; send a smaller one"
        )
    if data.startswith(_JPEG_SIGNATURE):
        _check_scans(data)
    header = _read_header(data)
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise TaskError(f"image claims a size of {width} x {height} pixels; send a real one")
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise TaskError(
            f"image is {width} x {height} pixels, the limit is {limits.pixels} pixels and "
            f"{limits.side} a side; send it at 1024 x 1024 or less"
        )
    return header


def read_size(data: bytes) -> tuple[int, int]:
    """Reads width and height in pixels, as the file claims them; checks nothing else.

    Takes microseconds whatever the size of the file.

    Args:
        data: A PNG, JPEG or WebP file.

    Raises:
        TaskError: Another format, or a header that cannot be read.
    """
    header = _read_header(data)
    return header.width, header.height


def decode_image(data: bytes, limits: ImageLimits | None = None) -> Image.Image:
    """Decodes an image prompt, upright (EXIF orientation applied).

    Takes up to some tenths of a second at the largest size: call it off the event loop.

    Args:
        data: A PNG, JPEG or WebP file; of an animation, the first frame is taken.
        limits: What is acceptable; the defaults of `ImageLimits` if not given.

    Returns:
        An RGBA image where the file carries transparency, otherwise RGB.

    Raises:
        TaskError: As `read_header`, or the pixel data is damaged.
    """
    header = read_header(data, limits)
    try:
        image = Image.open(BytesIO(data), formats=[header.format])
        if image.size != (header.width, header.height):
            raise TaskError("image has two different sizes in its header; send a sound file")
        image.load()
        return _to_rgb_or_rgba(ImageOps.exif_transpose(image))
    except TaskError:
        raise
    # A hostile file can make a decoder raise nearly anything; the fault is always the file's.
    except Exception as error:
        raise TaskError(
            f"image cannot be decoded as {header.format}: {type(error).__name__}; send a whole file"
        ) from error


def _to_rgb_or_rgba(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: convert() would clip instead of scaling.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _read_header(data: bytes) -> ImageHeader:
    try:
        return _parse_header(data)
    except (struct.error, IndexError):
        raise TaskError(
            f"image ends inside its header ({len(data)} bytes); send a whole file"
        ) from None


def _parse_header(data: bytes) -> ImageHeader:
    if data.startswith(_PNG_SIGNATURE):
        return ImageHeader("PNG", *struct.unpack_from(">II", data, 16))
    if data.startswith(_JPEG_SIGNATURE):
        return _parse_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _parse_webp(data)
    start = data[:8].hex(" ") or "nothing"
    raise TaskError(
        f"image is neither PNG, JPEG nor WebP (it starts with {start}); send one of these"
    )


def _check_scans(data: bytes) -> None:
    # Metadata may hold the marker's bytes by chance, but not often; picture data never does.
    scans = data.count(_JPEG_START_OF_SCAN)
    if scans > _JPEG_MAX_SCANS:
        raise TaskError(
            f"image is a JPEG of {scans} scans, the limit is {_JPEG_MAX_SCANS}; save it anew"
        )


def _parse_jpeg(data: bytes) -> ImageHeader:
    offset = 2
    for _ in range(_JPEG_MAX_STEPS):
        if data[offset] != 0xFF:
            raise TaskError(
                "image is a damaged JPEG: no marker where one must be; send a sound file"
            )
        marker = data[offset + 1]
        if marker == 0xFF:  # Fill byte.
            offset += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            offset += 2
        elif marker in _JPEG_START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, offset + 5)
            return ImageHeader("JPEG", width, height)
        else:
            offset += 2 + max(2, struct.unpack_from(">H", data, offset + 2)[0])
    raise TaskError(
        f"image is a JPEG without a size in its first {_JPEG_MAX_STEPS} segments; send a sound file"
    )


def _parse_webp(data: bytes) -> ImageHeader:
    chunk = data[12:16]
    if chunk == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif chunk == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif chunk == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise TaskError(
            f"image is a WebP without a picture (first chunk {chunk!r}); send a sound file"
        )
    return ImageHeader("WEBP", width, height)
