"""What the validator does to a cloud before it takes its pictures."""

from dataclasses import replace

import numpy as np

from protocol.gaussians import GaussianCloud

REFERENCE_SIDE = 1.5
"""The largest side of the box of the centres, after the validator's rescaling."""

MAX_LOGIT = 10.0
"""Opacity 0 or 1 has no finite logit; sigmoid(+-10) is within 5e-5 of it, which a renderer that
skips opacity under 1/255 and caps it at 0.999 cannot tell apart."""


def as_seen_by_validator(cloud: GaussianCloud) -> GaussianCloud:
    """Recentres, rescales and fades a cloud exactly as the validator does before rendering.

    One scalar, the mean of all 3N coordinates, is subtracted from x, y and z alike. Positions and
    scales are then multiplied by s = 1.5 / (largest side of the axis-aligned box of the centres),
    and opacity (after the sigmoid) is divided by that same s and clipped to 0..1. So a cloud whose
    largest side is under 1.5 loses opacity, and one that is not centred per axis leaves the middle
    of the picture.

    Args:
        cloud: At least two Gaussians at different positions.

    Returns:
        A new cloud; its opacity logits lie in -10..10 (see MAX_LOGIT).

    Raises:
        ValueError: The cloud is empty, or all its centres coincide, so that there is no scale.
    """
    require_size(cloud)
    positions = cloud.positions.astype(np.float64)
    side = float(np.ptp(positions, axis=0).max())
    scale = REFERENCE_SIDE / side
    limit = 1.0 / (1.0 + np.exp(-MAX_LOGIT))
    opacities = np.clip(cloud.opacities.astype(np.float64) / scale, 1.0 - limit, limit)
    return replace(
        cloud,
        positions=((positions - positions.mean()) * scale).astype(np.float32),
        log_scales=(cloud.log_scales + np.log(scale)).astype(np.float32),
        opacity_logits=np.log(opacities / (1.0 - opacities)).astype(np.float32),
    )


def require_size(cloud: GaussianCloud) -> None:
    """Refuses a cloud that a validator cannot rescale; see `as_seen_by_validator`."""
    if len(cloud) == 0:
        raise ValueError("an empty cloud has no size to rescale; give at least two Gaussians")
    if (cloud.positions == cloud.positions[0]).all():
        raise ValueError(
            f"all {len(cloud)} Gaussians sit at {cloud.positions[0].tolist()}: the validator's "
            "scale, 1.5 / largest side, is infinite; spread the centres"
        )
