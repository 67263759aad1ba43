"""What changes while Gaussians are optimised, as functions of how far that has come."""

from collections.abc import Sequence

FIRST_RATE, LAST_RATE = 1e-2, 2e-4
"""Learning rates of positions, in units of the scene."""

RATES = {"colors": 0.01, "opacities": 0.05, "scales": 0.005, "quats": 0.005}
"""Learning rates of everything else."""

NOISIEST, CLEANEST = 0.98, 0.02


def position_rate(progress: float) -> float:
    """Learning rate of positions, which falls exponentially.

    Args:
        progress: Share of the steps that are done, 0..1; so for all of this module.
    """
    rate: float = FIRST_RATE ** (1 - progress) * LAST_RATE**progress
    return rate


def resolution(progress: float, sizes: Sequence[int]) -> int:
    """Pixels per side of a rendered view: small at first, since a rough shape needs no more."""
    early, middle, late = sizes
    return early if progress < 0.3 else middle if progress < 0.6 else late


def noise_time(progress: float) -> float:
    """How much noise the guidance sees, 0..1: from nearly all to nearly none."""
    return min(max(1 - progress, CLEANEST), NOISIEST)
