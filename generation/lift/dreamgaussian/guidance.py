"""What judges views that no picture shows, and how its judgement becomes a gradient."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.settings import DreamGaussianSettings


class Guidance(Protocol):
    """Says of pictures from other sides how they should rather look."""

    size: int
    """Pixels per side of the pictures that it wants."""

    def begin(self, rgba: NDArray[np.uint8]) -> Any:
        """Looks at the known view, (S, S, 4) uint8; what it returns is handed to `loss`."""

    def elevation(self, known: Any, usual: float) -> float:
        """Where the known view was taken from, in degrees above the horizon.

        Args:
            known: From `begin`.
            usual: Of pictures; the answer of a guidance that cannot tell.
        """

    def loss(
        self,
        known: Any,
        pictures: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        """A scalar whose gradient moves pictures towards what they should look like.

        Args:
            known: From `begin`.
            pictures: (V, 4, size, size) RGB times coverage, and coverage; about 0..1. A guidance
                that judges pictures without coverage draws a background.
            azimuths: (V,) radians from the known view, to the right.
            elevations: (V,) radians from the known view, upwards.
            time: How much noise to add, 0..1.
            generator: Of the task, on the CPU.
        """


def scale_of(settings: DreamGaussianSettings) -> float:
    """The guidance scale: the given one, or that of the guidance."""
    if settings.scale is not None:
        return settings.scale
    return 5.0 if settings.guidance == "zero123" else 1.0


def fov_of(settings: DreamGaussianSettings) -> float:
    """Field of view in degrees: the given one, or that with which the guidance was trained."""
    if settings.fov is not None:
        return settings.fov
    return 31.4 if settings.guidance == "denoiser" else 49.1


def distil(value: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient along a value (V, ...) is the given one, and goes no further.

    Half the squared distance to where the gradient leads. Numbers that are not finite count as 0.
    """
    gradient = gradient.detach().nan_to_num(0.0, 0.0, 0.0)
    target = (value - gradient).detach()
    return 0.5 * (value - target).square().sum()


def drawn(shape: torch.Size, generator: torch.Generator, like: Tensor) -> Tensor:
    """Normal noise from a generator of the CPU, so that one seed is the same on every device."""
    return torch.randn(shape, generator=generator).to(like)
