"""The validator's outlier rule and means, decision by decision."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from generation.scoring.statistics import mean, without_outliers
from tests.generation.scoring.golden import GOLDEN, floats

OUTLIERS = json.loads((GOLDEN / "statistics/filter_outliers.json").read_text())["cases"]
MEANS = json.loads((GOLDEN / "statistics/compute_mean.json").read_text())["cases"]


def values(case: dict[str, Any], key: str = "input") -> NDArray[Any]:
    return floats(np.ravel(case[key]), case["dtype"])


def assert_mean(found: float, expected: Any, dtype: str) -> None:
    """Sums are taken in another order on every kind of processor, so the last digit may differ."""
    step = 4 * np.finfo(dtype).eps
    assert found == pytest.approx(float(expected), rel=float(step), abs=0, nan_ok=True)


@pytest.mark.parametrize("case", OUTLIERS, ids=lambda case: case["name"])
def test_every_decision_is_the_validators(case: dict[str, Any]) -> None:
    given = values(case)
    is_column = len(case["shape"]) == 2 and case["shape"][1] == 1
    ordered = given if is_column else np.sort(given)
    if "error" in case:
        with pytest.raises(ValueError, match="at least 6 values"):
            without_outliers(ordered)
        return
    assert np.array_equal(ordered, values(case, "order_used"), equal_nan=True)
    found = without_outliers(ordered)
    assert np.array_equal(found, values(case, "output"), equal_nan=True)
    assert found.dtype == case["dtype"]
    assert_mean(mean(found, "geometric_mean"), case["geometric_mean_of_output"], case["dtype"])


@pytest.mark.parametrize("case", MEANS, ids=lambda case: f"{case['name']}, {case['op']}")
def test_every_mean_is_the_validators_to_a_few_last_digits(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(ValueError, match="there are mean, median, geometric_mean"):
            mean(values(case), case["op"])
        return
    assert_mean(mean(values(case), case["op"]), case["output"], case["dtype"])


def test_all_cases_are_there() -> None:
    assert (len(OUTLIERS), len(MEANS)) == (75, 74)


sixteen = st.lists(st.floats(0, 1, width=32), min_size=16, max_size=16)
some = st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=25)


@settings(max_examples=200)
@given(sixteen)
def test_of_sixteen_values_at_most_two_go(numbers: list[float]) -> None:
    given = np.array(numbers, dtype=np.float32)
    assert 14 <= len(without_outliers(given)) <= 16


@settings(max_examples=100)
@given(some, st.randoms(use_true_random=False))
def test_the_order_of_the_values_decides_nothing(numbers: list[float], random: Any) -> None:
    given = np.array(numbers)
    shuffled = given.copy()
    random.shuffle(shuffled)
    kept, others = without_outliers(given), without_outliers(shuffled)
    assert sorted(kept.tolist()) == sorted(others.tolist())


@settings(max_examples=100)
@given(some)
def test_what_stays_keeps_its_order_and_its_values(numbers: list[float]) -> None:
    given = np.array(numbers)
    places = iter(given.tolist())
    assert all(any(value == other for other in places) for value in without_outliers(given))


@settings(max_examples=50)
@given(st.floats(0, 1), st.integers(6, 25))
def test_equal_values_all_stay(value: float, count: int) -> None:
    assert len(without_outliers(np.full(count, value))) == count
