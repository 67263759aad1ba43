"""The preview is the duel judge's grid, pixel for pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation.rendering import preview_grid, render_views
from generation.rendering.preview import combine_views
from scripts.benchmarks.rendering import sphere

GRID = Path(__file__).parents[2] / "golden" / "grid"


def test_grid_equals_the_validators() -> None:
    inputs = []
    for index in range(4):
        with Image.open(GRID / f"input_{index}.png") as picture:
            inputs.append(np.asarray(picture.convert("RGB")))
    with Image.open(GRID / "combined.png") as picture:
        expected = np.asarray(picture.convert("RGB"))
    assert np.array_equal(np.asarray(combine_views(np.stack(inputs))), expected)


def test_preview_shows_views_1_5_9_13() -> None:
    cloud = sphere(300)
    grid = preview_grid(cloud, 32, backend="cpu")
    assert (grid.mode, grid.size) == ("RGB", (69, 69))
    assert grid.tobytes() == combine_views(render_views(cloud, size=32, backend="cpu")).tobytes()


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (4, 8, 9, 3), (4, 8, 8), (4, 8, 8, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="four square pictures"):
        combine_views(np.zeros(shape, dtype=np.uint8))
