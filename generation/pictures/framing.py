"""The framing that TripoSR expects of a cut-out, and the grey that it expects around it."""

from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from generation.errors import NoObject
from generation.pictures.matte import Levels, object_box

MAX_SIDE = 1024
"""Pixels per side that are of use: rembg's networks see at most 1024, TripoSR 512.

Framing pads to a square, so a wide cut-out of 16 megapixels would take gigabytes and many seconds
on its way to the network, which sees a quarter of a megapixel of it.
"""


def frame(colours: Tensor, alpha: Tensor, levels: Levels, ratio: float) -> Tensor:
    """Crops to the object and pads to a square, as TripoSR's inputs were made; nothing is scaled.

    The box is that of `object_box`: without dust and haze it covers the pixels with alpha > 0. Its
    last row and column are left out, which TripoSR's own preparation loses too.

    Args:
        colours: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8, on the same device.
        levels: The same alpha on the host, where the object is looked for.
        ratio: Longer side of the box as a share of the returned side, 0..1.

    Returns:
        (S, S, 4) uint8 RGBA, on the device of the colours; padding is transparent black.

    Raises:
        NoObject: The object has fewer than 2 x 2 pixels.
    """
    left, top, right, bottom = object_box(levels) or (0, 0, 0, 0)
    width, height = right - left - 1, bottom - top - 1
    if min(width, height) < 1:
        raise NoObject("no foreground was found in the image: it is transparent throughout")
    longest = max(width, height)
    side = int(longest / ratio)
    # The box is centred in a square of its own size, and that in the larger one: the halves of
    # odd margins are rounded twice.
    margin = (side - longest) // 2
    column, row = margin + (longest - width) // 2, margin + (longest - height) // 2
    framed = colours.new_zeros(side, side, 4)
    inside = framed[row : row + height, column : column + width]
    inside[..., :3] = colours[top : top + height, left : left + width]
    inside[..., 3] = alpha[top : top + height, left : left + width]
    return framed


def lay_on_grey(rgba: Tensor) -> Tensor:
    """Blends with mid-grey, the background that TripoSR was trained on.

    Args:
        rgba: (H, W, 4) uint8.

    Returns:
        (H, W, 3) uint8 RGB on the same device; values are truncated, so that the background is 127.
    """
    places = (rgba[..., 3:].int() << 8) + rgba[..., :3]
    return _blends_with_grey(rgba.device).index_select(0, places.flatten()).view(places.shape)


def resize_foreground(image: Image.Image, ratio: float = 0.85) -> Image.Image:
    """Crops a picture to its object and pads it to a square; see `frame`.

    Args:
        image: RGBA.
        ratio: See `frame`.

    Returns:
        RGBA, square.

    Raises:
        NoObject: See `frame`.
    """
    pixels = pixels_of(image if image.mode == "RGBA" else image.convert("RGBA"))
    alpha = pixels[..., 3].contiguous()
    return Image.fromarray(frame(pixels[..., :3], alpha, alpha.numpy(), ratio).numpy())


def composite_on_grey(image: Image.Image) -> Image.Image:
    """Blends an RGBA picture with mid-grey to an RGB picture; see `lay_on_grey`."""
    return Image.fromarray(lay_on_grey(pixels_of(image.convert("RGBA"))).numpy())


def pixels_of(image: Image.Image) -> Tensor:
    """Returns the pixels of a picture, (H, W, channels) uint8, on the host."""
    return torch.from_numpy(np.array(image))


@lru_cache(maxsize=16)
def _blends_with_grey(device: torch.device) -> Tensor:
    """Blended values at 256 * alpha + colour.

    All 256 x 256 results in float32: integers would round a few of them otherwise.
    """
    values = np.arange(256, dtype=np.float32) / 255
    alpha = values[:, None]
    blended = ((values * alpha + 0.5 * (1 - alpha)) * 255).astype(np.uint8)
    return torch.from_numpy(blended.ravel()).to(device)
