"""The phases of an optimisation that may stop early. No torch here: plans are made of them."""

from typing import Literal

Phase = Literal["early", "middle", "late"]

EARLY_UNTIL, MIDDLE_UNTIL = 0.3, 0.6
"""Shares of the steps at which a phase ends."""


def phase_at(progress: float) -> Phase:
    """Returns the phase of the next step.

    A rough shape comes first, at small picture sizes. An object can be used once the middle phase
    is over; the late one adds detail.

    Args:
        progress: Share of the steps that are done, 0..1.
    """
    return "early" if progress < EARLY_UNTIL else "middle" if progress < MIDDLE_UNTIL else "late"
