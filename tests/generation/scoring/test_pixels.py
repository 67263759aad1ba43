"""What the validator's networks see, pixel by pixel."""

import hashlib
import json

import numpy as np
import pytest
import torch

from generation.scoring.pixels import for_clip, for_quality, to_unit
from tests.generation.scoring.golden import GOLDEN, pictures

QUALITY_PICTURES = tuple(f"quality/image_{index}.png" for index in range(4))
CLIP_PICTURES = ("text_alignment/prep_gradient.png", "text_alignment/prep_edges.png")


def test_quality_pictures_of_70_pixels() -> None:
    with np.load(GOLDEN / "quality/expected_70.npz") as expected:
        key = next(key for key in expected if expected[key].shape == (4, 3, 70, 70))
        found = for_quality(pictures(*QUALITY_PICTURES), 70).numpy()
        assert found == pytest.approx(expected[key], abs=2e-6)


def test_quality_pictures_of_518_pixels() -> None:
    found = for_quality(pictures(*QUALITY_PICTURES), 518).numpy()
    with np.load(GOLDEN / "quality/expected_518.npz") as expected:
        assert found[:, :, ::37, ::37] == pytest.approx(expected["strided"], abs=2e-6)
        assert found[:, :, :6, :6] == pytest.approx(expected["corner"], abs=2e-6)
        assert found[:, :, -6:, -6:] == pytest.approx(expected["corner_end"], abs=2e-6)
    summary = json.loads((GOLDEN / "quality/expected.json").read_text())["size_518"]
    assert found.mean(axis=(1, 2, 3)) == pytest.approx(summary["per_image_mean"], abs=1e-5)
    assert found.std(axis=(1, 2, 3)) == pytest.approx(summary["per_image_std_population"], abs=1e-5)
    assert (found.min(), found.max()) == pytest.approx((summary["min"], summary["max"]), abs=2e-6)


def test_a_quality_picture_of_the_right_size_is_not_resized() -> None:
    given = pictures(CLIP_PICTURES[1])
    red = (to_unit(given)[:, 0] - 0.485) / 0.229
    assert torch.equal(for_quality(given, 518)[:, 0], red)


@pytest.mark.parametrize(
    ("variant", "dtype"), [("float32", torch.float32), ("half_rounded_once", torch.float16)]
)
def test_clip_pictures(variant: str, dtype: torch.dtype) -> None:
    expected = json.loads((GOLDEN / "text_alignment/prep_expected.json").read_text())[variant]
    found = for_clip(pictures(*CLIP_PICTURES), 224, dtype).numpy()
    assert (list(found.shape), str(found.dtype)) == (expected["shape"], expected["dtype"])
    tolerance = 2e-6 if dtype == torch.float32 else 0
    with np.load(GOLDEN / "text_alignment/prep_slices.npz") as slices:
        strided, rows = slices[f"{variant}_strided"], slices[f"{variant}_rows"]
        assert found[:, :, ::7, ::7] == pytest.approx(strided, abs=tolerance)
        assert found[:, :, [0, 1, 112, 223]] == pytest.approx(rows, abs=tolerance)
    wide = found.astype(np.float64)
    assert wide.mean(axis=(1, 2, 3)) == pytest.approx(expected["mean"], abs=1e-6)
    assert wide.std(axis=(1, 2, 3)) == pytest.approx(expected["std_population"], abs=1e-6)
    assert wide.min(axis=(1, 2, 3)) == pytest.approx(expected["min"], abs=2e-6)
    assert wide.max(axis=(1, 2, 3)) == pytest.approx(expected["max"], abs=2e-6)
    assert hashlib.sha256(found.tobytes()).hexdigest() == expected["sha256"]
