"""A FLUX picture on its way from noise to pixels, and the layout of its latents."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a picture; `Flux1` caches one schedule per number of steps and size.

    Attributes:
        sigmas: Noise levels from 1 to 0, one more than there are steps.
        times: (steps,) 1000 x the noise level at which each step starts, in the networks' number
            format and on their device.
        deltas: (steps,) float32, the change of the noise level in each step, on the same device.
    """

    sigmas: tuple[float, ...]
    times: Tensor
    deltas: Tensor


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture between two denoising steps. Its tensors are its own: no later call changes them.

    Attributes:
        latents: (1, T, 4 C) tokens, one for each 2 x 2 block of the (C, S, S) latents, where S is
            the picture's side / 8 and T = (S / 2) ** 2; in the networks' number format.
        words: (1, `max_sequence_length`, 4096) T5's hidden states of the prompt.
        pooled: (1, 768) CLIP's pooled output for the prompt.
        schedule: The noise levels.
        index: The next step; the number of steps once all have run.
    """

    latents: Tensor
    words: Tensor
    pooled: Tensor
    schedule: Schedule
    index: int = 0

    @property
    def steps(self) -> int:
        """How many denoising steps the picture takes in all."""
        return len(self.schedule.sigmas) - 1


def pack(latents: Tensor) -> Tensor:
    """(1, C, 2 S, 2 S) to tokens (1, S * S, 4 C), one for each 2 x 2 block."""
    _, channels, height, width = latents.shape
    blocks = latents.view(1, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(1, -1, 4 * channels)


def unpack(tokens: Tensor) -> Tensor:
    """Undoes `pack`."""
    side = math.isqrt(tokens.shape[1])
    blocks = tokens.view(1, side, side, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * side, 2 * side)


def places(side: int, device: torch.device) -> Tensor:
    """(side * side, 3): nothing, row and column of every image token."""
    line = torch.arange(side, device=device)
    return torch.cartesian_prod(line.new_zeros(1), line, line)
