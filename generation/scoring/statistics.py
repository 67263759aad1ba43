"""How a validator draws one number from those of its sixteen views."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = TypeVar("Floats", NDArray[np.float32], NDArray[np.float64])

NEIGHBOUR = 5
"""A value is judged by its distance to its neighbour of this rank."""
SHARE_KEPT = 90
"""Per cent of the values that are kept, as a rule."""


def without_outliers(values: Floats) -> Floats:
    """Leaves out the values that are farthest from their fifth nearest neighbour.

    It is no test for outliers: of sixteen values two go as a rule, one or none if distances are
    equal, and never more. Decisions are exact: distances are computed in the type of the values,
    and a value goes if its distance is greater than the 90th percentile of all of them. A NaN
    makes that percentile NaN, so nothing goes. Values of exactly -1 go, too.

    Args:
        values: (N,) float32 or float64, N at least 6. The validator sorts those of pairs and of
            image tasks first, and leaves those of text tasks in the order of the views; only the
            last digit of a mean depends on it.

    Returns:
        The rest, in the same order.

    Raises:
        ValueError: There are fewer than 6.
    """
    if len(values) <= NEIGHBOUR:
        raise ValueError(
            f"the outlier rule takes at least {NEIGHBOUR + 1} values, got {len(values)}"
        )
    with np.errstate(invalid="ignore"):
        distances = np.abs(values[:, None] - values[None, :])
        # The nearest is the value itself.
        to_neighbour = np.sort(distances, axis=1)[:, NEIGHBOUR]
        outlying = to_neighbour > np.percentile(to_neighbour, SHARE_KEPT)
    kept: Floats = values[~outlying & (values != -1)]
    return kept


def mean(values: Floats, kind: str = "mean") -> float:
    """Takes a mean in the type of the values; its last digit may differ from the validator's.

    Args:
        values: (N,) float32 or float64.
        kind: "mean"; "median", which is the lower of two in the middle; or "geometric_mean", which
            is 0 if one value is 0 and NaN if one is negative.

    Returns:
        NaN if there are no values.

    Raises:
        ValueError: There is no mean of that kind.
    """
    if kind not in _MEANS:
        raise ValueError(f"there is no mean {kind!r}; there are {', '.join(_MEANS)}")
    if not len(values):
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return _MEANS[kind](values)


def _median(values: NDArray[np.floating]) -> float:
    # A NaN is sorted last, and makes the median one.
    ordered = np.sort(values)
    return float(ordered[-1] if np.isnan(ordered[-1]) else ordered[(len(values) - 1) // 2])


_MEANS: Mapping[str, Callable[[NDArray[np.floating]], float]] = {
    "mean": lambda values: float(values.mean()),
    "median": _median,
    "geometric_mean": lambda values: float(np.exp(np.log(values).mean())),
}
