"""From a picture to what the network expects."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def image_to_tensor(
    image: Image.Image | NDArray[np.generic] | Tensor,
    size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Brings an image to the network's size by antialiased bilinear resampling in float32.

    Args:
        image: A PIL image without transparency, or an array (H, W, 3): uint8, or float in 0..1; or
            a uint8 tensor of that shape, on any device. The aspect ratio is not kept: give a
            square.
        size: Pixels per side of the result.
        device: Where to resample.

    Returns:
        (1, 3, size, size) float32 RGB in 0..1.

    Raises:
        ValueError: The image is transparent, or its shape, kind of number or range is wrong.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"image is a tensor of {image.dtype} and shape {tuple(image.shape)}, expected "
                "torch.uint8 and (height, width, 3)"
            )
        pixels = image
    else:
        pixels = torch.from_numpy(np.array(_checked(image)))
    is_bytes = pixels.dtype == torch.uint8
    pixels = pixels.to(device).float()
    if is_bytes:
        pixels = pixels / 255
    batch = pixels.permute(2, 0, 1)[None].contiguous()
    if batch.shape[-2:] == (size, size):
        return batch
    return F.interpolate(
        batch, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )


def _checked(image: Image.Image | NDArray[np.generic]) -> NDArray[np.generic]:
    if isinstance(image, Image.Image):
        if image.has_transparency_data:
            raise ValueError(f"image has transparency (mode {image.mode}): lay it over grey first")
        image = np.asarray(image.convert("RGB"))
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"image has shape {image.shape}, expected (height, width, 3)")
    is_bytes = image.dtype == np.uint8
    if not is_bytes and not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"image holds {image.dtype}, expected uint8 or float in 0..1")
    # Written so that NaN fails too.
    if not is_bytes and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"image runs from {image.min()} to {image.max()}, expected 0..1: divide by the maximum"
        )
    return image
