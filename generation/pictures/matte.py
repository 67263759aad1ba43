"""What the alpha channel of a picture says: whether it outlines an object, and where that is."""

import numpy as np
from numpy.typing import NDArray

from generation.pictures.plain_border import dilate

Levels = NDArray[np.uint8]
_Flags = NDArray[np.bool_]

FAINT = 25
"""Alpha up to this level is not seen: haze that a network or an eraser leaves behind."""

_DUST = 0.02
"""Bodies with less than this share of the largest one's alpha are dust, or a watermark."""

_THICK_SHARE = 0.25
"""Lines of one or two pixels are dust if the thicker bodies hold this share of all alpha."""

_RIM = 2
"""Faint pixels this near to a body are its soft edge."""

_HAZY = 0.25
"""If more than this share of the pixels just beyond the rim is faint, they are haze, and so is the
rim."""

_LEAST_OUTSIDE, _LEAST_BORDER = 0.05, 0.25
"""An outline leaves this share of the picture and of its border clear. Rounded corners do not."""

_RECTANGLE, _SPANS = 0.98, 0.95
"""Bodies that fill this share of their box, and a box that spans this share of the picture's width
or height, are a photo with margins."""

_STEP, _WITHIN, _SHARP_SHARE = 0.4, 64, 0.5
"""The alpha changes by this share of its level, within a 64th of the picture's side, along this
share of an outline. A vignette fades over a tenth of the side or more."""

_SEEN = 256

_EIGHT_WAYS = np.ones((3, 3), dtype=bool)


def opacity(alpha: Levels, coverage: float) -> int:
    """Returns the alpha that a share of the pixels has or exceeds, 0..255.

    255 in most pictures; less in one that is translucent as a whole.

    Args:
        alpha: (H, W).
        coverage: The share, 0..1: what an object covers at least.
    """
    counts = np.bincount(alpha.ravel(), minlength=256)[::-1].cumsum()[::-1]
    return int(np.flatnonzero(counts >= max(1.0, coverage * alpha.size))[-1])


def outlines_object(alpha: Levels, level: int) -> bool:
    """Returns whether a picture is cut out: its transparency surrounds something with an edge.

    It does not if the picture has only rounded corners, transparent margins, holes, a vignette, or
    the same alpha everywhere.

    Args:
        alpha: (H, W).
        level: The alpha of what is opaque, as `opacity` finds it.
    """
    from scipy import ndimage

    solid = 2 * alpha.astype(np.uint16) >= level
    if solid.all() or not solid.any():
        return False
    labels, _ = ndimage.label(np.pad(~solid, 1, constant_values=True))
    outside = (labels == labels[0, 0])[1:-1, 1:-1]
    border = np.concatenate([outside[0], outside[-1], outside[:, 0], outside[:, -1]])
    if outside.mean() < _LEAST_OUTSIDE or border.mean() < _LEAST_BORDER:
        return False
    left, top, right, bottom = _bounds(solid)
    spans = max((right - left) / alpha.shape[1], (bottom - top) / alpha.shape[0])
    if spans >= _SPANS and solid[top:bottom, left:right].mean() >= _RECTANGLE:
        return False
    # Every fourth pixel of 1024 tells as well how steep an edge is, in a tenth of the time.
    stride = max(1, max(alpha.shape) // _SEEN)
    seen = alpha[::stride, ::stride]
    window = 2 * max(2, max(seen.shape) // _WITHIN) + 1
    change = ndimage.maximum_filter(seen, window) - ndimage.minimum_filter(seen, window)
    rows, columns = np.nonzero(solid & dilate(outside, 1))
    return bool((change[rows // stride, columns // stride] >= _STEP * level).mean() >= _SHARP_SHARE)


def object_box(alpha: Levels) -> tuple[int, int, int, int] | None:
    """Finds the box of an object in a cut-out: left, top, right and bottom, the ends excluded.

    All bodies count that are no dust: a table with what lies on it is one object.

    Args:
        alpha: (H, W).

    Returns:
        None if every pixel is faint.
    """
    from scipy import ndimage

    visible = alpha > FAINT
    if not visible.any():
        return None
    labels, count = ndimage.label(visible, _EIGHT_WAYS)
    kept = visible
    if count > 1:
        mass = np.bincount(labels[visible], weights=alpha[visible], minlength=count + 1)
        thick = np.zeros(count + 1, dtype=bool)
        thick[labels[~dilate(~visible, 1)]] = True
        if mass[thick].sum() >= _THICK_SHARE * mass.sum():
            mass[~thick] = 0.0
        kept = (mass >= _DUST * mass.max())[labels] & visible
    left, top, right, bottom = _bounds(kept)
    reach = 2 * _RIM
    around = (
        slice(max(0, top - reach), bottom + reach),
        slice(max(0, left - reach), right + reach),
    )
    bodies, faint = kept[around], (alpha[around] > 0) & ~visible[around]
    near = dilate(bodies, _RIM)
    beyond = dilate(near, _RIM) & ~near
    if faint[beyond].mean() > _HAZY if beyond.any() else False:
        return left, top, right, bottom
    inner = _bounds(bodies | (faint & near))
    return (
        inner[0] + around[1].start,
        inner[1] + around[0].start,
        inner[2] + around[1].start,
        inner[3] + around[0].start,
    )


def _bounds(flags: _Flags) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of what is set; something is."""
    rows, columns = np.flatnonzero(flags.any(axis=1)), np.flatnonzero(flags.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
