"""The data checks by which a validator scores a result 0, on the bytes that travel.

`validity.check` says the same of a cloud before it is encoded, and more; this takes a few tenths of
a millisecond.
"""

import numpy as np

from generation.scoring.validity import MAX_TRANSPARENT_SHARE, MIN_GAUSSIANS
from protocol.spz import PackedCloud

_IDENTITY_BYTES = (127, 128)
"""Components within one step of 0: all three make the identity rotation."""


def problem_of(packed: PackedCloud) -> str:
    """Returns why a validator would score a cloud 0 without looking at it; empty if it would look.

    Nothing in an SPZ file of version 2 can be NaN or infinite.

    Args:
        packed: An unpacked file.
    """
    positions, alphas, _, _, rotations = packed.sections(packed.payload)
    if packed.count < MIN_GAUSSIANS:
        return f"it has {packed.count:,} Gaussians, fewer than {MIN_GAUSSIANS:,}"
    transparent = float(np.mean(alphas == 0))
    if transparent > MAX_TRANSPARENT_SHARE:
        return (
            f"{transparent:.0%} of its Gaussians are transparent, more than "
            f"{MAX_TRANSPARENT_SHARE:.0%}"
        )
    low, high = _IDENTITY_BYTES
    if rotations.min() >= low and rotations.max() <= high:
        return "all of its rotations are (1, 0, 0, 0)"
    places = positions.reshape(-1)
    if np.array_equal(places[packed.position_bytes :], places[: -packed.position_bytes]):
        return "all of its Gaussians are at one place, so it has no size to be scaled by"
    return ""
