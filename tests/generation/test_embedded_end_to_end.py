"""The preset `embedded` makes what a prompt asks for: colour, extent and shape of its files."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.engine import Engine
from generation.plan import Plan
from generation.result import Generation
from generation.scoring.validator import load
from generation.scoring.validity import check
from generation.stage import Asset
from protocol import spz
from protocol.gaussians import GaussianCloud
from protocol.tasks import TextTask
from scripts.train_embedded import metrics
from scripts.train_embedded.palette import COLOURS, nearest
from scripts.train_embedded.prompts import OBJECT_NAMES
from tests.generation.scoring.tiny import SHAPES, write_models

# Sides of the box as shares of the largest, in the subnet's frame: width, height, depth.
EXPECTED = {
    "a blue cube": ("blue", "cube", (0.75, 0.7, 0.75), (1.0, 1.0, 1.0)),
    "a red sphere": ("red", "sphere", (0.85, 0.85, 0.85), (1.0, 1.0, 1.0)),
    "a green tree": ("green", "tree", (0.45, 1.0, 0.4), (0.8, 1.0, 0.8)),
    "a detailed red sports car": ("red", "car", (0.8, 0.4, 0.8), (1.0, 0.65, 1.0)),
}


@pytest.fixture(scope="module")
def clouds(warm_engine: Engine) -> dict[str, GaussianCloud]:
    async def generate(prompt: str) -> Generation:
        task = TextTask(id=prompt, prompt=prompt, seed=0)
        best = warm_engine.ladder[0]
        return await warm_engine.run(task, Plan(best, warm_engine.route(task, best)))

    async def generate_all() -> dict[str, GaussianCloud]:
        results = await asyncio.gather(*map(generate, EXPECTED))
        return {result.task_id: spz.decode(result.spz) for result in results}

    return asyncio.run(generate_all())


@pytest.mark.parametrize("prompt", EXPECTED)
def test_a_prompt_comes_back_in_its_colour_and_shape(
    clouds: dict[str, GaussianCloud], prompt: str
) -> None:
    colour, shape, least, most = EXPECTED[prompt]
    cloud = clouds[prompt]
    assert check(cloud).passed
    assert list(COLOURS)[int(nearest(metrics.mean_colour(cloud)))] == colour
    assert metrics.best_yaw_iou(cloud, OBJECT_NAMES.index(shape)) > 0.7
    sides = np.ptp(cloud.positions, axis=0)
    shares = sides / sides.max()
    assert (shares >= least).all(), shares
    assert (shares <= most).all(), shares


def test_the_validators_networks_score_an_object(
    clouds: dict[str, GaussianCloud], tmp_path: Path
) -> None:
    scorer = load(write_models(tmp_path), tmp_path, torch.device("cpu"), shapes=SHAPES)
    prompt = "a red sphere"
    cloud = clouds[prompt]
    asset = Asset(cloud, spz.encode(cloud), check(cloud))
    score = scorer.score(asset, TextTask(id=prompt, prompt=prompt, seed=0))
    assert {"iqa", "alignment", "ssim", "lpips"} == set(score.parts)
    # Views of a sphere are much alike, and the last repeats the first.
    assert score.parts["ssim"] > 0.6
    assert score.parts["lpips"] > 0.6
