"""Cut-outs without a network, for pictures whose border is plain: an object in front of a wall.

A test on the pixels decides whether the border is plain. If it is, whatever differs from the
border's colour and is not connected with the border is the object. Where that leaves a doubt, such
as a soft shadow or an object as light as the wall, there is no mask, and the caller's network
decides.
"""

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_Levels = NDArray[np.uint8]
_Flags = NDArray[np.bool_]
_Value = TypeVar("_Value", bound=np.generic)

LARGEST_NOISE = 4.0
"""Largest standard deviation of a plain border around its plane of colour, in levels of 255. FLUX's
plain backgrounds have 1 to 2, a camera's in daylight 2 to 4, fabric or grass 10 and more."""

LARGEST_SLOPE = 24.0
"""Most levels that a plain border may be lighter or darker at an edge than in the middle: light
that falls off across a wall, but not a floor that meets it."""

_OUTLIERS = 0.002
"""Share of the border's pixels that may be of another colour: dust, but no part of an object."""

_LEAST_CONTRAST, _NOISES = 8.0, 5.0
"""A pixel differs from the border if it is this many levels, and this many standard deviations of
the border's noise, away from its colour in some channel."""

_CLEAR, _CLEAR_WITHIN, _CLEAR_SHARE = 3.0, 3, 0.97
"""The difference must reach this many times the least, within so many pixels of this share of the
outline. It rises more slowly at the edge of a shadow, and never gets there on a faint object."""

_SPECK = 0.01
"""Parts smaller than this share of the largest are noise or dust."""

_ENCLOSED = 0.02
"""Enclosed parts in the border's colour, as a share of the object: more of it may be a hole, such
as the one in a mug's handle, and only a network can tell."""

_LARGEST_COVERAGE = 0.85
_SMALLEST_SIDE = 32
_SOFT = 2
"""Pixels on this side of the outline that may be mixed with the background."""


def plain_border_mask(image: Image.Image, *, min_coverage: float = 0.001) -> Image.Image | None:
    """Finds the object in a picture whose border is plain.

    512 x 512 pixels take about 7 ms on one CPU core.

    Args:
        image: RGB.
        min_coverage: Least share of the picture that an object covers.

    Returns:
        The mask, L, of the same size, the object white; soft at the outline, where pixels show some
        of the background. None if the border is not plain, or if it is not clear what the object
        is.
    """
    if min(image.size) < _SMALLEST_SIDE:
        return None
    # The outermost pixels are left out: a picture's decoder or a resampling rings there.
    rim, width = max(1, min(image.size) // 128), max(2, min(image.size) // 64)
    planes = [np.asarray(channel, dtype=np.float32) for channel in image.split()]
    background = _background(planes, rim, width)
    if background is None:
        return None
    colours, noise = background
    contrast = round(max(_LEAST_CONTRAST, _NOISES * noise))
    difference = _difference(planes, colours)
    for edge in _edges(difference, 0, rim):
        edge[...] = 0
    inside = _object(difference > contrast, min_coverage)
    if inside is None or any(edge.any() for edge in _edges(inside, rim, width)):
        return None
    outline = inside & ~erode(inside, 1)
    clear = dilate(difference > _CLEAR * contrast, _CLEAR_WITHIN)
    if np.count_nonzero(clear & outline) < _CLEAR_SHARE * np.count_nonzero(outline):
        return None
    return Image.fromarray(_soften(inside, difference))


def _edges(picture: NDArray[_Value], start: int, width: int) -> Iterator[NDArray[_Value]]:
    """Yields the four strips, `width` wide, of the frame that lies `start` pixels inside."""
    rows, columns = (slice(start, length - start) for length in picture.shape)
    between = slice(start + width, picture.shape[0] - start - width)
    yield picture[rows, columns][:width]
    yield picture[rows, columns][-width:]
    yield picture[between, columns][:, :width]
    yield picture[between, columns][:, -width:]


def _background(
    planes: list[NDArray[np.float32]], rim: int, width: int
) -> tuple[NDArray[np.float64], float] | None:
    """Fits a plane of colour to the border.

    Returns:
        For each channel, the level in the middle and what it gains to the right edge and to the
        lower edge, (3, 3); the noise around it, a standard deviation. None if it is not plain.
    """
    rows, columns = planes[0].shape
    y, x = np.meshgrid(*(_places(length) for length in (rows, columns)), indexing="ij", sparse=True)
    grid = [np.broadcast_to(axis, planes[0].shape) for axis in (x, y)]
    border = [
        np.concatenate([edge.ravel() for edge in _edges(plane, rim, width)])
        for plane in (*grid, *planes)
    ]
    places = np.stack([np.ones_like(border[0]), border[0], border[1]], axis=1).astype(np.float64)
    levels = np.stack(border[2:], axis=1).astype(np.float64)
    colours = np.linalg.solve(places.T @ places, places.T @ levels)
    away = np.abs(levels - places @ colours)
    # The median sees the noise alone; a few pixels of another colour would spoil the mean.
    noise = float(np.median(away, axis=0).max()) / 0.6745
    outliers = (away > max(_LEAST_CONTRAST, _NOISES * noise)).any(axis=1).mean()
    slope = np.abs(colours[1:]).max()
    if noise > LARGEST_NOISE or slope > LARGEST_SLOPE or outliers > _OUTLIERS:
        return None
    return np.asarray(colours.T, dtype=np.float64), noise


def _places(length: int) -> NDArray[np.float32]:
    return np.linspace(-1, 1, length, dtype=np.float32)


def _difference(planes: list[NDArray[np.float32]], colours: NDArray[np.float64]) -> _Levels:
    """(H, W) largest difference of any channel from the background's plane of colour."""
    rows, columns = planes[0].shape
    largest = np.zeros((rows, columns), dtype=np.float32)
    for plane, (middle, right, down) in zip(planes, colours.astype(np.float32), strict=True):
        expected = (middle + down * _places(rows))[:, None] + right * _places(columns)
        np.maximum(largest, np.abs(plane - expected), out=largest)
    return largest.round().clip(0, 255).astype(np.uint8)


def _object(differs: _Flags, min_coverage: float) -> _Flags | None:
    """Returns what the background, flooded from the border, does not reach; None if in doubt.

    Args:
        differs: (H, W); False along the border.
        min_coverage: Least share of the picture.
    """
    from scipy import ndimage

    labels, _ = ndimage.label(~differs)
    inside = labels != labels[0, 0]
    parts, count = ndimage.label(inside, structure=np.ones((3, 3)))
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    large = sizes >= max(1, _SPECK * sizes.max())
    inside = large[parts]
    covered = np.count_nonzero(inside)
    if not min_coverage <= covered / inside.size <= _LARGEST_COVERAGE:
        return None
    enclosed = np.count_nonzero(inside & ~differs)
    return inside if enclosed <= _ENCLOSED * covered else None


def _soften(inside: _Flags, difference: _Levels) -> _Levels:
    """Makes pixels at the outline as opaque as they differ from the background.

    A pixel that shows a share of the object differs by that share of what the object's own colour,
    the largest difference nearby, does.
    """
    nearby = difference
    for axis in (0, 1):
        nearby = _along(np.maximum, nearby, axis, _SOFT)
    share = difference.astype(np.float32) * 255 / np.maximum(nearby, 1)
    rim = inside & ~erode(inside, _SOFT)
    alpha: _Levels = np.where(rim, share, np.where(inside, 255, 0)).astype(np.uint8)
    return alpha


def erode(values: NDArray[_Value], reach: int) -> NDArray[_Value]:
    """The least of every pixel and of all within `reach` rows and columns; of flags, `and`."""
    return _along(np.minimum, _along(np.minimum, values, 0, reach), 1, reach)


def dilate(flags: _Flags, reach: int) -> _Flags:
    """What is set, and all within `reach` rows and columns; a tenth of the time of ndimage's."""
    return _along(np.logical_or, _along(np.logical_or, flags, 0, reach), 1, reach)


def _along(combine: np.ufunc, picture: NDArray[_Value], axis: int, reach: int) -> NDArray[_Value]:
    """Combines every pixel with those up to `reach` before and after it along an axis."""
    combined = picture.copy()
    into, source = np.moveaxis(combined, axis, 0), np.moveaxis(picture, axis, 0)
    for step in range(1, reach + 1):
        combine(into[step:], source[:-step], out=into[step:])
        combine(into[:-step], source[step:], out=into[:-step])
    return combined
