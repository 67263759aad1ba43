"""Fields of events as numbers."""

import math
from collections.abc import Mapping

Fields = Mapping[str, object]


def number(fields: Fields, name: str, *, most: float = math.inf) -> float | None:
    """Returns a field that is a number from 0 to `most`; None for anything else."""
    return finite(fields.get(name), most=most)


def finite(value: object, *, least: float = 0.0, most: float = math.inf) -> float | None:
    """Returns a number from `least` to `most`; None for anything else, as what a validator sends.

    Infinity and NaN are None even without bounds.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if least <= value <= most and math.isfinite(value) else None
    except OverflowError:
        return None
