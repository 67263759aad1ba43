"""Reads image prompts: every transport and tool decodes pictures here.

A file is refused or read in three steps, each affordable before the next begins. The size is read
from the header, because a file of 20 KB can unfold to hundreds of megabytes. Everything but the
picture, its colour profile and its orientation is taken out (`_png`, `_jpeg`, `_webp`), so that
metadata can neither fail a picture nor take time. What is left goes to Pillow's decoder.
"""

import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from protocol import _jpeg, _png, _webp
from protocol._icc import to_srgb
from protocol._stripped import Stripped
from protocol.errors import TaskError

_MODULES = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}
# Not through Image.open: it counts pixels by a limit of its own, and tries other formats.
_PLUGINS: dict[str, type[ImageFile]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DRAFT = 2
"""A JPEG is decoded at no less than this many times the wanted size: scaling stays sharp."""

_EIGHT_BITS = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)


@dataclass(frozen=True)
class ImageLimits:
    """What an image prompt may be.

    Within the defaults every file decodes in a second on one core and in 300 MB.

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

    Takes up to some 50 milliseconds with a hostile file: call it off the event loop.

    Args:
        data: A PNG, JPEG or WebP file.
        limits: What is acceptable; the defaults of `ImageLimits` if not given.

    Raises:
        TaskError: Another format, a header that cannot be read, an image beyond a limit, or one
            that takes a decoder too long: a PNG or WebP of more than 16,384 chunks, a JPEG of more
            than 4,096 segments, 100 scans, or scans that visit too many blocks in all.
    """
    limits = limits or ImageLimits()
    if len(data) > limits.bytes:
        raise TaskError(
            f"image is {len(data)} bytes, the limit is {limits.bytes}; send a smaller one"
        )
    header = _read_header(data)
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise TaskError(f"image claims a size of {width} x {height} pixels; send a real one")
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise TaskError(
            f"image is {width} x {height} pixels, the limit is {limits.pixels} pixels and "
            f"{limits.side} a side; send it at 1024 x 1024 or less"
        )
    _MODULES[header.format].check(data, limits.pixels)
    return header


def read_size(data: bytes) -> tuple[int, int]:
    """Reads width and height in pixels, as the file claims them; checks nothing else.

    Takes microseconds with a file of an encoder's, up to 30 milliseconds with a hostile one.

    Args:
        data: A PNG, JPEG or WebP file.

    Raises:
        TaskError: Another format, or a header that cannot be read.
    """
    header = _read_header(data)
    return header.width, header.height


def decode_image(
    data: bytes, limits: ImageLimits | None = None, *, side: int | None = None
) -> Image.Image:
    """Decodes an image prompt, upright (EXIF orientation applied) and in sRGB.

    Takes up to a second on one core and 300 MB at the largest size: call it off the event loop.
    A colour profile that is damaged, or for another kind of picture, is ignored.

    Args:
        data: A PNG, JPEG or WebP file; of an animation, the first frame is taken.
        limits: What is acceptable; the defaults of `ImageLimits` if not given.
        side: Largest width or height of the result, in pixels: a larger picture is scaled down.
            None leaves every picture at its size.

    Returns:
        An RGBA image where the file carries transparency, otherwise RGB.

    Raises:
        TaskError: As `read_header`, or the pixel data is damaged.
    """
    header = read_header(data, limits)
    try:
        stripped = _MODULES[header.format].strip(data)
        picture = _decoded(stripped, _PLUGINS[header.format], side)
        if side is not None:
            picture.thumbnail((side, side))
        if stripped.profile:
            picture = to_srgb(picture, stripped.profile)
        if picture.mode == "CMYK":
            picture = picture.convert("RGB")
        if stripped.orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[stripped.orientation])
        return picture
    except TaskError:
        raise
    # A hostile file can make a decoder raise nearly anything; the fault is always the file's.
    except Exception as error:
        raise TaskError(
            f"image cannot be decoded as {header.format}: {type(error).__name__}; send a whole file"
        ) from error


def _decoded(stripped: Stripped, plugin: type[ImageFile], side: int | None) -> Image.Image:
    """Returns the picture, RGB, RGBA or CMYK, free of its decoder."""
    # Checked first: the plugin allocates what the picture claims, and only the canvas is limited.
    left, top, width, height = stripped.canvas or (0, 0, *stripped.size)
    if left + stripped.size[0] > width or top + stripped.size[1] > height:
        raise TaskError("image is smaller than its own first frame; send a sound file")
    image = plugin(BytesIO(stripped.file))
    if image.size != stripped.size:
        raise TaskError("image has two different sizes in its header; send a sound file")
    if side is not None and max(image.size) > side:
        scale = _DRAFT * side / max(image.size)
        wanted = tuple(max(1, round(scale * length)) for length in image.size)
        image.draft(None, (wanted[0], wanted[1]))
    image.load()
    picture = _plain(image, stripped.key)
    del image  # Its decoder holds several times the picture's memory.
    if stripped.canvas is None:
        return picture
    canvas = Image.new("RGBA", (width, height))
    canvas.paste(picture, (left, top))
    return canvas


def _plain(image: Image.Image, key: int | tuple[int, int, int] | None) -> Image.Image:
    if image.mode == "I;16":  # convert() would clip instead of scaling.
        levels = np.asarray(image)
        grey = Image.fromarray(_EIGHT_BITS[levels])
        if key is None:
            return grey.convert("RGB")
        opaque = Image.fromarray((levels != key).astype(np.uint8) * np.uint8(255))
        return Image.merge("RGBA", (grey, grey, grey, opaque))
    if image.mode == "CMYK":
        return image.copy()
    if key is not None:
        image.info["transparency"] = key
    transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _read_header(data: bytes) -> ImageHeader:
    name = _format(data)
    try:
        return ImageHeader(name, *_MODULES[name].read_size(data))
    except (struct.error, IndexError):
        raise TaskError(
            f"image ends inside its header ({len(data)} bytes); send a whole file"
        ) from None


def _format(data: bytes) -> str:
    if data.startswith(_png.SIGNATURE):
        return "PNG"
    if data.startswith(_jpeg.SIGNATURE):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    start = data[:8].hex(" ") or "nothing"
    raise TaskError(
        f"image is neither PNG, JPEG nor WebP (it starts with {start}); send one of these"
    )
