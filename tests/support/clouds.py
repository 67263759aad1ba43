"""Small clouds whose pictures can be worked out by hand."""

import numpy as np

from protocol.gaussians import SH_C0, Float32Array, GaussianCloud


def logit(opacity: float) -> float:
    return float(np.log(opacity / (1.0 - opacity)))


def make_cloud(
    positions: list[tuple[float, float, float]],
    *,
    sigmas: tuple[float, float, float] = (0.05, 0.05, 0.05),
    rotation: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0),
    opacity: float = 0.9,
    colors: list[tuple[float, float, float]] | None = None,
) -> GaussianCloud:
    """All Gaussians share shape and opacity; colours are rgb, grey unless given."""
    count = len(positions)
    rgb = np.array(colors or [(0.5, 0.5, 0.5)] * count).reshape(count, 3)

    def rows(values: object, columns: int) -> Float32Array:
        return np.tile(np.array(values, dtype=np.float32), (count, 1)).reshape(count, columns)

    return GaussianCloud(
        positions=np.array(positions, dtype=np.float32).reshape(count, 3),
        log_scales=rows(np.log(sigmas), 3),
        rotations=rows(rotation, 4),
        opacity_logits=np.full(count, logit(opacity), dtype=np.float32),
        colors_dc=((rgb - 0.5) / SH_C0).astype(np.float32),
    )
