"""Stages that take no time and end in an object of a given size: what is left is around them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.stage import Asset, Cutout, StageFunction, StepContext
from protocol import spz
from protocol.gaussians import GaussianCloud

_SIDE = 512


def functions(gaussians: int) -> Mapping[str, StageFunction]:
    """Returns functions for the stages of a preset with TripoSR.

    Args:
        gaussians: In the cloud.
    """
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    cloud = GaussianCloud(
        positions=normal(gaussians, 3),
        log_scales=normal(gaussians, 3) - 4,
        rotations=normal(gaussians, 4),
        opacity_logits=np.full(gaussians, 4, np.float32),
        colors_dc=normal(gaussians, 3),
    )
    pixels = random.integers(0, 256, (_SIDE, _SIDE, 4), np.uint8)
    cutout = Cutout(pixels[..., :3].copy(), pixels, pixels[..., 1:].copy(), rating=0.5)
    asset = Asset(cloud, spz.encode(cloud), check(cloud))
    scored = Asset(cloud, asset.spz, asset.validity, Score(0.5, {}, "none"))
    results: Mapping[str, Any] = {
        "prompt": "drawing",
        "denoise": "drawing",
        "decode": pixels[..., :3],
        "cutout": cutout,
        "lift": "code",
        "splats": cloud,
        "encode": asset,
        "mesh": None,
        "rate": cutout,
        "score": scored,
    }

    def function(stage: str) -> StageFunction:
        def give(value: Any, context: StepContext) -> Any:
            many = stage in ("decode", "cutout", "rate") and context.seeds
            return (results[stage],) * len(context.seeds) if many else results[stage]

        return give

    return {stage: function(stage) for stage in results}
