"""Pictures on their way from noise to pixels, and the layout of their latents."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generation.pictures.prompt_memory import Embedding


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels of a picture; a model caches one schedule per number of steps and size.

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
    """Pictures of one prompt between two denoising steps; no later call changes its tensors.

    Attributes:
        latents: (n, T, C) tokens of n pictures, T = (side / 16) ** 2, in the networks' number
            format.
        embedding: What the transformer sees of the prompt; see the model.
        schedule: The noise levels.
        index: The next step; the number of steps once all have run.
    """

    latents: Tensor
    embedding: Embedding
    schedule: Schedule
    index: int = 0

    @property
    def steps(self) -> int:
        """How many denoising steps the pictures take in all."""
        return len(self.schedule.sigmas) - 1


def pack(latents: Tensor) -> Tensor:
    """(n, C, 2 S, 2 S) to tokens (n, S * S, 4 C), one for each 2 x 2 patch of every channel."""
    count, channels, height, width = latents.shape
    blocks = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, 4 * channels)


def unpack(tokens: Tensor) -> Tensor:
    """Undoes `pack`."""
    count, length, _ = tokens.shape
    side = math.isqrt(length)
    blocks = tokens.view(count, side, side, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(count, -1, 2 * side, 2 * side)


def rows(latents: Tensor) -> Tensor:
    """(n, C, S, S) to tokens (n, S * S, C), one for each place."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def places(side: int, device: torch.device) -> Tensor:
    """(side * side, 3): nothing, row and column of every image token of FLUX.1."""
    line = torch.arange(side, device=device)
    return torch.cartesian_prod(line.new_zeros(1), line, line)
