"""Which way is up in a file."""

from typing import Literal

import numpy as np

from protocol.gaussians import GaussianCloud

UpAxis = Literal["+y", "-y"]


def turn_up_axis(cloud: GaussianCloud, up: UpAxis) -> GaussianCloud:
    """Returns a cloud that has +y up with `up` as its up axis; the front stays towards +z.

    "-y" is what many 3DGS files have: they keep the camera convention of COLMAP, and viewers such
    as SuperSplat roll whatever they load by half a turn about z. This is the same half turn. It
    only moves and negates numbers, so that doing it twice gives the very same cloud (rotations
    negated, which are the same rotations). Degree-0 colours look the same from everywhere.

    Args:
        cloud: +y up.
        up: The up axis of the result.
    """
    if up == "+y":
        return cloud
    w, x, y, z = cloud.rotations.T
    return GaussianCloud(
        positions=cloud.positions * np.array([-1, -1, 1], np.float32),
        log_scales=cloud.log_scales,
        # The quaternion product (0, 0, 0, 1) (w, x, y, z).
        rotations=np.stack([-z, -y, x, w], axis=1),
        opacity_logits=cloud.opacity_logits,
        colors_dc=cloud.colors_dc,
    )
