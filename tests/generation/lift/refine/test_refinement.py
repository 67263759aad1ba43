"""Refinement finds the camera, follows the picture, and can end at any step."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from generation.lift.refine import Refinement
from generation.lift.refine.pose import ELEVATION, LOG_DISTANCE, Lens, view_of
from generation.lift.refine.refinement import judging_blocks
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.device_cloud import DeviceCloud
from generation.scoring.validity import check
from protocol.gaussians import SH_C0
from scripts.benchmarks.rendering import sphere

SIZE, STEPS = 32, 30


def ellipsoid(
    stretch: tuple[float, float, float] = (1.0, 0.4, 0.7),
    rgb: tuple[float, ...] = (0.8, 0.3, 0.2),
    count: int = 700,
) -> GaussianTensors:
    """A finished cloud of one colour."""
    cloud = sphere(count)
    arrays = (cloud.positions, cloud.log_scales, cloud.rotations, cloud.opacity_logits)
    positions, log_scales, rotations, opacity_logits = map(torch.from_numpy, arrays)
    colours = torch.tensor(rgb).expand(len(positions), 3)
    return GaussianTensors(
        positions=positions * torch.tensor(stretch),
        log_scales=log_scales,
        rotations=rotations,
        opacity_logits=opacity_logits,
        colors_dc=(colours - 0.5) / SH_C0,
    )


def photograph(cloud: GaussianTensors, pose: torch.Tensor, size: int = 80) -> NDArray[np.uint8]:
    """A cut-out of a cloud."""
    placed = DeviceCloud.of(cloud.to_cloud(), torch.device("cpu"))
    picture = Lens.of(size).draw(placed, view_of(pose))
    colours = picture[..., :3] / picture[..., 3:].clamp_min(1e-6)
    rgba = torch.cat([colours, picture[..., 3:]], dim=-1)
    return (rgba.clamp(0, 1) * 255).round().byte().numpy()


POSE = torch.tensor([math.radians(23), math.log(3.2), 0.05, -0.1])
TRUTH = ellipsoid((1.0, 0.5, 0.7), (0.3, 0.5, 0.8))


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return photograph(TRUTH, POSE)


@pytest.fixture(scope="module")
def refined(picture: NDArray[np.uint8]) -> Refinement:
    camera = Lens.of(SIZE), POSE
    refinement = Refinement(ellipsoid(), picture, steps=STEPS, size=SIZE, camera=camera)
    refinement.run(STEPS)
    return refinement


def height(cloud: GaussianTensors) -> float:
    low, high = torch.aminmax(cloud.positions[:, 1])
    return float(high - low)


def test_the_camera_is_found(picture: NDArray[np.uint8]) -> None:
    refinement = Refinement(TRUTH, picture, steps=80, size=SIZE)
    refinement.run(20)
    found = refinement.pose.detach()
    assert math.degrees(float(found[ELEVATION] - POSE[ELEVATION])) == pytest.approx(0, abs=3)
    assert float((found[LOG_DISTANCE] - POSE[LOG_DISTANCE]).exp()) == pytest.approx(1, abs=0.03)


def test_shape_and_colour_follow_the_picture(refined: Refinement) -> None:
    before, after = refined.start, refined.result()
    assert abs(height(after) - height(TRUTH)) < 0.9 * abs(height(before) - height(TRUTH))
    wanted = TRUTH.colors_dc[0]
    off = [(cloud.colors_dc - wanted).abs().mean() for cloud in (before, after)]
    assert off[1] < 0.8 * off[0]


@pytest.mark.parametrize("done", [1, STEPS // 2])
def test_the_cloud_is_valid_after_any_step(picture: NDArray[np.uint8], done: int) -> None:
    refinement = Refinement(ellipsoid(count=7100), picture, steps=STEPS, size=SIZE)
    refinement.run(done)
    cloud = refinement.result().to_cloud()
    assert check(cloud).passed
    assert np.ptp(cloud.positions, axis=0).max() == pytest.approx(LARGEST_SIDE, rel=1e-3)


def test_slices_make_no_difference(picture: NDArray[np.uint8], refined: Refinement) -> None:
    camera = Lens.of(SIZE), POSE
    sliced = Refinement(ellipsoid(), picture, steps=STEPS, size=SIZE, camera=camera)
    while sliced.done < STEPS:
        sliced.run(5)
    for one, other in zip(sliced.result().tensors(), refined.result().tensors(), strict=True):
        assert torch.equal(one, other)


def test_a_picture_of_something_else_changes_nothing() -> None:
    ring = np.zeros((80, 80, 4), dtype=np.uint8)
    ring[4:76, 4:76, 3] = 255
    ring[12:68, 12:68, 3] = 0
    refinement = Refinement(ellipsoid(), ring, steps=STEPS, size=SIZE)
    refinement.run(STEPS)
    assert refinement.result() is refinement.start


def test_what_matches_worse_where_it_was_not_optimised_is_not_answered() -> None:
    picture = photograph(TRUTH, POSE, SIZE)
    optimised = ~judging_blocks(SIZE).numpy()
    picture[optimised, :3] = (255, 0, 0)
    refinement = Refinement(TRUTH, picture, steps=STEPS, size=SIZE)
    refinement.run(STEPS)
    assert refinement.result() is refinement.start


@pytest.mark.cuda
def test_cuda_refines_as_the_cpu_does(picture: NDArray[np.uint8], refined: Refinement) -> None:
    start = GaussianTensors(*(tensor.cuda() for tensor in ellipsoid().tensors()))
    camera = Lens.of(SIZE), POSE
    refinement = Refinement(start, picture, steps=STEPS, size=SIZE, camera=camera)
    refinement.run(STEPS)
    after = refinement.result()
    assert after.positions.device.type == "cuda"
    assert height(after) == pytest.approx(height(refined.result()), abs=0.02)
