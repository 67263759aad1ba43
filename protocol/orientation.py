"""Which way is up in a file."""

from typing import Literal

import numpy as np

from protocol.gaussians import GaussianCloud

UpAxis = Literal["+y", "-y"]


def turn_up_axis(cloud: GaussianCloud, up: UpAxis) -> GaussianCloud:
    """Returns a cloud that has +y up and its front towards +z, with `up` as its up axis.

    "-y" is half a turn about x: (x, y, z) becomes (x, -y, -z), so up is -y and the front faces -z.
    That is the camera convention of COLMAP and OpenCV, which 3DGS files keep, and the frame of
    Competition 0: its base miner generates with +z up and the front towards -y, and turns the
    result by +90 degrees about x, (x, y, z) to (x, -z, y).

    It only moves and negates numbers, so that doing it twice gives the very same cloud (rotations
    negated, which are the same rotations). Degree-0 colours look the same from everywhere.

    Args:
        cloud: +y up, front towards +z.
        up: The up axis of the result.
    """
    if up == "+y":
        return cloud
    w, x, y, z = cloud.rotations.T
    return GaussianCloud(
        positions=cloud.positions * np.array([1, -1, -1], np.float32),
        log_scales=cloud.log_scales,
        # The quaternion product (0, 1, 0, 0) (w, x, y, z).
        rotations=np.stack([-x, w, -z, y], axis=1),
        opacity_logits=cloud.opacity_logits,
        colors_dc=cloud.colors_dc,
    )
