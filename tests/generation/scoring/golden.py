"""The reference data of the validator's scorer (tests/golden/score/README.md)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden" / "score"

SEQUENCES = (
    "orbit",
    "closed_orbit",
    "one_dim_view",
    "five_dim_views",
    "alternating_inverted",
    "all_same",
)


def floats(values: Iterable[Any], dtype: str = "float64") -> NDArray[Any]:
    """Numbers of a JSON file, in which those that are none are strings."""
    return np.array([float(value) for value in values], dtype=dtype)


def pictures(*names: str) -> Tensor:
    """(N, H, W, 3) uint8."""
    arrays = []
    for name in names:
        with Image.open(GOLDEN / name) as image:
            arrays.append(np.asarray(image.convert("RGB")))
    return torch.from_numpy(np.stack(arrays))


def sequence(name: str) -> Tensor:
    """(16, 96, 96, 3) uint8: one of `SEQUENCES`."""
    views = pictures(*(f"images/view_{index:02}.png" for index in range(16)))
    if name == "closed_orbit":
        views[15] = views[0]
    elif name == "one_dim_view":
        views[5] //= 3
    elif name == "five_dim_views":
        views[1::3] //= 3
    elif name == "alternating_inverted":
        views[1::2] = 255 - views[1::2]
    elif name == "all_same":
        views = views[3:4].repeat(16, 1, 1, 1)
    return views
