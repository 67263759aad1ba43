"""What changes while Gaussians are optimised, as functions of how far that has come."""

from collections.abc import Sequence

from generation.lift.phases import MIDDLE_UNTIL, phase_at

FIRST_RATE, LAST_RATE = 1e-2, 2e-4
"""Learning rates of positions, in units of the scene."""

RATES = {"colors": 0.01, "opacities": 0.05, "scales": 0.005, "quats": 0.005}
"""Learning rates of everything else, in a run of `USUAL_STEPS`."""

USUAL_STEPS, FASTEST = 500, 2.5

NOISIEST, CLEANEST = 0.98, 0.02

ANNEALED = 0.8
"""How far noise and rates have come when only the late phase is left."""

LAST_RESET = 0.45
"""Share of the steps after which opacities are not reset: those that follow surely bring them
back."""


def annealing(progress: float) -> float:
    """How far noise and rates have come, 0..1: to `ANNEALED` by the end of the middle phase.

    The late phase may be cut off anywhere. What was done until then must not have been left at much
    noise and large steps, so it gets only the rest of the way, at three eighths of the pace.

    Args:
        progress: Share of the steps that are done, 0..1.
    """
    if progress < MIDDLE_UNTIL:
        return ANNEALED * progress / MIDDLE_UNTIL
    return ANNEALED + (1 - ANNEALED) * (progress - MIDDLE_UNTIL) / (1 - MIDDLE_UNTIL)


def pace(steps: int) -> float:
    """What `RATES` are multiplied by in a run of a number of steps.

    In 150 steps at the rates for 500, a colour could just come from grey to red.
    """
    return min(max(USUAL_STEPS / steps, 1.0), FASTEST)


def position_rate(progress: float) -> float:
    """Learning rate of positions, which falls exponentially.

    Args:
        progress: From `annealing`.
    """
    rate: float = FIRST_RATE ** (1 - progress) * LAST_RATE**progress
    return rate


def resolution(progress: float, sizes: Sequence[int]) -> int:
    """Pixels per side of a rendered view: small at first, since a rough shape needs no more.

    Args:
        progress: Share of the steps that are done, 0..1.
        sizes: In the three phases.
    """
    early, middle, late = sizes
    return {"early": early, "middle": middle, "late": late}[phase_at(progress)]


def noise_time(progress: float) -> float:
    """How much noise the guidance sees, 0..1: from nearly all to nearly none.

    Args:
        progress: From `annealing`.
    """
    return min(max(1 - progress, CLEANEST), NOISIEST)
