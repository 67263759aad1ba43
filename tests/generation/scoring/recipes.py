"""Weights that the reference data describes by a recipe, so that no file has to hold them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

_CONVOLUTIONS = {
    "features.0": (64, 3, 11, 11),
    "features.3": (192, 64, 5, 5),
    "features.6": (384, 192, 3, 3),
    "features.8": (256, 384, 3, 3),
    "features.10": (256, 256, 3, 3),
}


def alexnet_features() -> dict[str, Tensor]:
    """The convolutions of AlexNet, by torchvision's names."""
    random = np.random.RandomState(404)
    weights: dict[str, Tensor] = {}
    for name, shape in _CONVOLUTIONS.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weight = (random.standard_normal(shape) * scale).astype(np.float32)
        bias = (0.05 * random.standard_normal(shape[0])).astype(np.float32)
        weights |= {
            f"{name}.weight": torch.from_numpy(weight),
            f"{name}.bias": torch.from_numpy(bias),
        }
    return weights


def write_alexnet(folder: Path) -> Path:
    file = folder / "alexnet.safetensors"
    save_file(alexnet_features(), file)
    return file


def timm_tower(empty: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Weights for a state dict of these shapes, and the SHA-256 over their bytes."""
    random = np.random.RandomState(2024)
    digest = hashlib.sha256()
    weights = {}
    for key in sorted(empty):
        shape = tuple(empty[key].shape)
        if not shape or not empty[key].is_floating_point():
            continue
        drawn = random.standard_normal(shape)
        if len(shape) > 1:
            drawn /= np.sqrt(np.prod(shape[1:]))
        elif key.endswith("bias"):
            drawn *= 0.1
        else:
            drawn = 1 + 0.1 * drawn
        array = drawn.astype(np.float32)
        digest.update(array.tobytes())
        weights[key] = torch.from_numpy(array)
    return weights, digest.hexdigest()
