"""From a cut-out to the square picture on black that TripoSplat's encoders were trained with."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from generation.errors import NoObject
from generation.pictures.plain_border import erode

CANVAS = 1024
"""Pixels per side of the prepared picture."""

ERODE_RADIUS = 1
"""Pixels that the outline is moved inwards, where a cut-out has a rim of the old background."""

_MARGIN = 1.2
"""Side of the crop as a multiple of the longer side of the object's box."""

_LONGEST = 4
"""Longest side of the enlarged picture, as a multiple of the canvas."""


def prepare(
    picture: Image.Image | NDArray[np.uint8],
    *,
    canvas: int = CANVAS,
    erode_radius: int = ERODE_RADIUS,
) -> NDArray[np.uint8]:
    """Centres the object of a cut-out on a black square.

    The picture is scaled until its shorter side is the canvas, its outline eroded, and a square
    around the object cropped and scaled to the canvas. `Cutout.rgba` fits as it is: its own frame
    only decides how large the object is in the first of the two resamplings.

    Time and memory grow with the picture's pixels, not with its shape: one that is longer than 4:1
    is scaled less.

    Args:
        picture: RGBA or another mode with transparency, or (H, W, 4) uint8; any size.
        canvas: Pixels per side of the result.
        erode_radius: Pixels of the scaled picture; 0 leaves the outline as it is.

    Returns:
        (canvas, canvas, 3) uint8 RGB.

    Raises:
        NoObject: The picture is opaque throughout, or transparent throughout, or has only lines
            that the erosion removes.
        ValueError: The picture has no transparency, no pixels or another shape.

    Source: TripoSplat (VAST 2026), the preparation of its public code.
    """
    image = _scaled(_with_alpha(picture), canvas)
    alpha = image.getchannel("A")
    if alpha.getextrema()[0] == 255:
        raise NoObject(
            "the picture is opaque throughout, so that no object stands out: remove its background "
            "first"
        )
    if erode_radius > 0:
        # What Pillow's MinFilter finds, in a hundredth of its time.
        alpha = Image.fromarray(erode(np.asarray(alpha), erode_radius))
        image.putalpha(alpha)
    left, top, right, bottom = _crop_box(alpha.getbbox(), erode_radius)
    square = image.crop((left, top, right, bottom))
    square = square.resize((canvas, canvas), Image.Resampling.LANCZOS)
    prepared = Image.new("RGB", square.size)
    prepared.paste(square.convert("RGB"), mask=square.getchannel("A"))
    return np.array(prepared)


def _with_alpha(picture: Image.Image | NDArray[np.uint8]) -> Image.Image:
    if not isinstance(picture, Image.Image):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 4:
            raise ValueError(
                f"picture holds {picture.dtype} and has shape {picture.shape}, expected uint8 and "
                "(height, width, 4)"
            )
        picture = Image.fromarray(picture)
    if not picture.has_transparency_data:
        raise ValueError(
            f"picture has no transparency (mode {picture.mode}), expected RGBA: remove its "
            "background first"
        )
    if 0 in picture.size:
        raise ValueError(
            f"picture is {picture.width} x {picture.height} pixels, at least 1 x 1 is needed"
        )
    return picture if picture.mode == "RGBA" else picture.convert("RGBA")


def _scaled(image: Image.Image, canvas: int) -> Image.Image:
    scale = min(canvas / min(image.size), _LONGEST * canvas / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Pillow premultiplies meanwhile: colours under zero alpha do not bleed.
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _crop_box(
    box: tuple[int, int, int, int] | None, erode_radius: int
) -> tuple[int, int, int, int]:
    """Returns the box to crop; it may reach out of the picture and be two pixels off square."""
    if box is not None:
        left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
        x, y = (left + right) / 2, (top + bottom) / 2
        half = max(right - left, bottom - top) / 2 * _MARGIN
        # Truncated towards zero on either side of it.
        crop = int(x - half), int(y - half), int(x + half), int(y + half)
        if crop[0] < crop[2] and crop[1] < crop[3]:
            return crop
    raise NoObject(
        "no object was found in the picture: it is transparent throughout, or shows only lines "
        f"thinner than {2 * erode_radius + 1} pixels once it is scaled, which the erosion of its "
        "outline removes"
    )
