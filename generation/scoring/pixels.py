"""From pictures to what each of the validator's networks sees.

The validator resizes without antialiasing and without keeping the aspect ratio, and rounds pixels
to float16 on the way to CLIP. Constants are Python numbers, so that they need no transfer to the
pictures' device.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_FACTOR = 3.0
"""The validator multiplies CLIP's mean and deviation by this, so that the network sees dark
pictures."""


def to_unit(pictures: Tensor) -> Tensor:
    """Maps (B, H, W, 3) uint8 to (B, 3, H, W) float32 in 0..1."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def for_quality(pictures: Tensor, size: int) -> Tensor:
    """Prepares pictures for DINOv2: bilinear, ImageNet's mean and deviation.

    Args:
        pictures: (B, H, W, 3) uint8.
        size: Side of the network's pictures.

    Returns:
        (B, 3, size, size) float32.
    """
    unit = to_unit(pictures)
    if unit.shape[-2:] != (size, size):
        unit = F.interpolate(unit, (size, size), mode="bilinear", align_corners=False)
    return _normalised(unit, IMAGENET_MEAN, IMAGENET_STD)


def for_clip(pictures: Tensor, size: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Prepares pictures for CLIP: bicubic without clipping, CLIP's mean and deviation times 3.

    Args:
        pictures: (B, H, W, 3) uint8.
        size: Side of the network's pictures.
        dtype: float16, as the validator's: the pixels are rounded to it, resized in float32, and
            rounded once more. With float32 nothing is rounded.

    Returns:
        (B, 3, size, size) of that type.
    """
    unit = to_unit(pictures).to(dtype).float()
    resized = F.interpolate(unit, (size, size), mode="bicubic", align_corners=False).to(dtype)
    name = str(dtype).removeprefix("torch.")
    mean, std = (
        (np.array(values, dtype=np.float32) * np.float32(CLIP_FACTOR)).astype(name).tolist()
        for values in (CLIP_MEAN, CLIP_STD)
    )
    return _normalised(resized, mean, std)


def for_lpips(pictures: Tensor, size: int = 256) -> Tensor:
    """Prepares pictures for LPIPS: bicubic, clipped to 0..1.

    Args:
        pictures: (B, H, W, 3) uint8.
        size: Side of the network's pictures.

    Returns:
        (B, 3, size, size) float32.
    """
    unit = to_unit(pictures)
    return F.interpolate(unit, (size, size), mode="bicubic", align_corners=False).clamp(0, 1)


def _normalised(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = zip(pictures.unbind(1), mean, std, strict=True)
    return torch.stack([(channel - m) / s for channel, m, s in channels], dim=1)
