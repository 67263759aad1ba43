"""The framing that TripoSR expects of a cut-out, and the grey that it expects around it."""

import numpy as np
from PIL import Image

from generation.errors import NoObject
from generation.pictures.matte import object_box

MAX_SIDE = 1024
"""Pixels per side that are of use: rembg's networks see at most 1024, TripoSR 512.

Framing pads to a square, so a wide cut-out of 16 megapixels would take gigabytes and many seconds
on its way to the network, which sees a quarter of a megapixel of it.
"""


def resize_foreground(image: Image.Image, ratio: float = 0.85) -> Image.Image:
    """Crops to the object and pads to a square, as TripoSR's inputs were made; nothing is scaled.

    The box is that of `object_box`: without dust and haze it covers the pixels with alpha > 0. Its
    last row and column are left out, which TripoSR's own preparation loses too.

    Args:
        image: RGBA.
        ratio: Longer side of the box as a share of the returned side, 0..1.

    Returns:
        RGBA, square; padding is transparent black.

    Raises:
        NoObject: The object has fewer than 2 x 2 pixels.
    """
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    left, top, right, bottom = object_box(np.asarray(image.getchannel("A"))) or (0, 0, 0, 0)
    width, height = right - left - 1, bottom - top - 1
    if min(width, height) < 1:
        raise NoObject("no foreground was found in the image: it is transparent throughout")
    longest = max(width, height)
    side = int(longest / ratio)
    # The box is centred in a square of its own size, and that in the larger one: the halves of
    # odd margins are rounded twice.
    margin = (side - longest) // 2
    place = (margin + (longest - width) // 2, margin + (longest - height) // 2)
    framed = Image.new("RGBA", (side, side))
    framed.paste(image.crop((left, top, right - 1, bottom - 1)), place)
    return framed


def composite_on_grey(image: Image.Image) -> Image.Image:
    """Blends with mid-grey, the background that TripoSR was trained on.

    Args:
        image: RGBA.

    Returns:
        RGB of the same size; values are truncated, so that the background is 127.
    """
    *colours, alpha = image.convert("RGBA").split()
    row = np.asarray(alpha).astype(np.intp) << 8
    return Image.merge(
        "RGB", [Image.fromarray(_ON_GREY.take(row + np.asarray(colour))) for colour in colours]
    )


def _blends_with_grey() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """All 256 x 256 results in float32: integers would round a few of them otherwise."""
    values = np.arange(256, dtype=np.float32) / 255
    alpha = values[:, None]
    return ((values * alpha + 0.5 * (1 - alpha)) * 255).astype(np.uint8).ravel()


_ON_GREY = _blends_with_grey()
"""Blended values at 256 * alpha + colour."""
