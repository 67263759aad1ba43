"""The twelve colours that a prompt can name."""

import torch
from torch import Tensor

# Mid-tones: shading averages to about one, so a rendered object's mean colour is its entry here.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.08, 0.08),
    "orange": (0.92, 0.43, 0.04),
    "yellow": (0.92, 0.82, 0.10),
    "green": (0.12, 0.58, 0.16),
    "cyan": (0.10, 0.74, 0.78),
    "blue": (0.10, 0.20, 0.80),
    "purple": (0.46, 0.12, 0.66),
    "pink": (0.93, 0.52, 0.70),
    "brown": (0.40, 0.23, 0.11),
    "black": (0.07, 0.07, 0.08),
    "grey": (0.46, 0.46, 0.48),
    "white": (0.90, 0.90, 0.90),
}

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("crimson", "scarlet"),
    "yellow": ("golden",),
    "green": ("emerald",),
    "cyan": ("turquoise", "teal"),
    "blue": ("navy",),
    "purple": ("violet",),
    "grey": ("gray",),
}


def palette(device: torch.device | str = "cpu") -> Tensor:
    """(12, 3) float32 RGB in 0..1, in the order of `COLOURS`."""
    return torch.tensor(list(COLOURS.values()), device=device)


def nearest(rgb: Tensor) -> Tensor:
    """Index (...,) of the named colour nearest to rgb (..., 3), by Euclidean distance in RGB."""
    return (rgb[..., None, :] - palette(rgb.device)).square().sum(-1).argmin(-1)
