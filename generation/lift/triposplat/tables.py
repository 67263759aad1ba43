"""Tables without parameters: sinusoids of a number, and of a point's coordinates.

Phases reach 3.8e5, where neighbouring float32 numbers are 0.03 apart. So the order of the products
is part of what the weights have learned.
"""

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.lift.triposplat.config import Sinusoid

_CPU = torch.device("cpu")


def sinusoid(values: Tensor, config: Sinusoid, turn: float = 1.0) -> Tensor:
    """Embeds numbers as cosines, then sines, of falling frequencies.

    Args:
        values: (B,).
        config: Size and period; the caller has applied the factor.
        turn: Multiplies the phases.

    Returns:
        (B, config.size) float32.
    """
    phases = (
        values.float()[:, None] * _falling(config.size // 2, config.period, values.device) * turn
    )
    return torch.cat([phases.cos(), phases.sin()], dim=-1)


def point_table(points: Tensor, width: int, octaves: int) -> Tensor:
    """Embeds the points that the decoder's networks read.

    Args:
        points: (..., 3) float32 in 0..1.
        width: Entries of a row; what is left over after a multiple of 6 is zero.
        octaves: The frequencies run from 1 to 2 ** octaves.

    Returns:
        (..., width) float32: per axis, sines, then cosines.
    """
    phases = points[..., None] * _rising(width // 6, octaves, points.device) * math.pi
    return _by_axis(phases, width)


def sobol_table(tokens: int, width: int, seed: int, octaves: int) -> tuple[Tensor, Tensor]:
    """Gives every latent token its place in space, and embeds it.

    Args:
        tokens: How many.
        width: As `point_table`.
        seed: Of the scrambling.
        octaves: Whole powers of two among the frequencies; the rest lie between them.

    Returns:
        The points (tokens, 3) and their table (tokens, width), float32 on the CPU.
    """
    with torch.device("cpu"):
        engine: Any = torch.quasirandom.SobolEngine  # torch has no types for it.
        points: Tensor = engine(3, scramble=True, seed=seed).draw(tokens, dtype=torch.float32)
    count = width // 6
    between = max(0, count - octaves)
    exponents = torch.arange(octaves, dtype=torch.float32, device=_CPU)[:count]
    fractions = torch.arange(between, dtype=torch.float32, device=_CPU) / max(1, between)
    frequencies = 2.0 ** torch.cat([exponents, fractions * octaves])
    return points, _by_axis(points[..., None] * frequencies * 2 * math.pi, width)


def hammersley(count: int) -> Tensor:
    """Spreads points evenly over the unit cube (Hammersley 1960).

    Returns:
        (count, 3) float64: the index over the count, and its digits in base 2 and in base 3
        mirrored at the point.
    """
    rows = [
        (index / count, _radical_inverse(index, 2), _radical_inverse(index, 3))
        for index in range(count)
    ]
    return torch.tensor(rows, dtype=torch.float64, device=_CPU)


def _radical_inverse(index: int, base: int) -> float:
    value, digit = 0.0, 1.0
    while index:
        index, remainder = divmod(index, base)
        digit /= base
        value += remainder * digit
    return value


def _by_axis(phases: Tensor, width: int) -> Tensor:
    table = torch.cat([phases.sin(), phases.cos()], dim=-1).flatten(-2)
    return F.pad(table, (0, width - table.shape[-1]))


# Powers differ in the last bit from one device to the next, so both are computed on the CPU.
@lru_cache(maxsize=8)
def _falling(count: int, period: float, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        steps = torch.arange(count, dtype=torch.float32, device=_CPU)
        # Exponentials in float32 differ from one make of CPU to the next.
        return (-math.log(period) * steps / count).double().exp().float().to(device)


@lru_cache(maxsize=8)
def _rising(count: int, octaves: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        exponents = torch.linspace(0, octaves, count, dtype=torch.float32, device=_CPU)
        return (2.0**exponents).to(device)
