"""The validator's final score, in its order and types."""

import json
import math

import pytest

from generation.scoring.formula import final_score
from tests.generation.scoring.golden import GOLDEN

ROWS = json.loads((GOLDEN / "final_score.json").read_text())["rows"]


def test_all_rows_are_the_validators_to_the_last_digit() -> None:
    assert len(ROWS) == 72
    for row in ROWS:
        parts = (float(row[key]) for key in ("iqa", "alignment", "ssim", "lpips"))
        found, expected = final_score(*parts), float(row["score"])
        assert found == expected or (math.isnan(found) and math.isnan(expected)), row


def test_the_limit_of_the_alignment_itself_passes() -> None:
    assert final_score(0.9, 0.3, 0.9, 0.9) > 0.7
    assert final_score(0.9, 0.2999, 0.9, 0.9) == 0


def test_a_low_alignment_hides_what_is_not_a_number() -> None:
    assert final_score(0.9, 0.29, math.nan, 0.9) == 0
    assert math.isnan(final_score(0.9, 0.3, math.nan, 0.9))


@pytest.mark.parametrize("missing", ["iqa", "alignment", "ssim", "lpips"])
def test_each_part_adds_to_the_score(missing: str) -> None:
    parts = dict.fromkeys(("iqa", "alignment", "ssim", "lpips"), 0.9)
    less = parts | {missing: 0.5}
    assert final_score(**less) < final_score(**parts)
