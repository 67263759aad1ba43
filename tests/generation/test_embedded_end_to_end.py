"""The embedded networks make what a prompt asks for: colour, extent and shape of the splat."""

from pathlib import Path

import numpy as np
import pytest

import generation
from scripts.train_embedded.evaluate import Networks, measure_prompt
from scripts.train_embedded.prompts import COLOUR_NAMES, OBJECT_NAMES, plain_prompt

FOLDER = Path(generation.__file__).parent / "embedded"


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(FOLDER)


# Sides of the box as shares of the largest, in the subnet's frame: width, height, depth.
@pytest.mark.parametrize(
    ("colour", "shape", "least", "most"),
    [
        ("blue", "cube", (0.75, 0.7, 0.75), (1.0, 1.0, 1.0)),
        ("red", "sphere", (0.85, 0.85, 0.85), (1.0, 1.0, 1.0)),
        ("green", "tree", (0.45, 1.0, 0.4), (0.8, 1.0, 0.8)),
    ],
)
def test_a_prompt_comes_back_in_its_colour_and_shape(
    networks: Networks,
    colour: str,
    shape: str,
    least: tuple[float, float, float],
    most: tuple[float, float, float],
) -> None:
    prompt = plain_prompt(COLOUR_NAMES.index(colour), OBJECT_NAMES.index(shape))
    result, row = measure_prompt(networks, prompt, seed=0)
    assert result.problem == ""
    assert result.found == colour
    assert result.shape_iou > 0.6
    assert row.cloud is not None
    sides = np.ptp(row.cloud.positions, axis=0)
    shares = sides / sides.max()
    assert (shares >= least).all(), shares
    assert (shares <= most).all(), shares
