"""Refinement finds the camera, follows the picture, and can end at any step."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from generation.lift.refine import Refinement
from generation.lift.refine.pose import ELEVATION, LOG_DISTANCE, Lens, view_of
from generation.lift.refine.refinement import WORST_SILHOUETTE, judging_blocks
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.device_cloud import DeviceCloud
from generation.scoring.validity import MIN_GAUSSIANS, check
from protocol.gaussians import SH_C0
from scripts.benchmarks.rendering import sphere

SIZE, STEPS, LONG = 32, 30, 60


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
    refinement = Refinement(ellipsoid(), picture, steps=LONG, size=SIZE, camera=camera)
    refinement.run(LONG)
    return refinement


def height(cloud: GaussianTensors) -> float:
    low, high = torch.aminmax(cloud.positions[:, 1])
    return float(high - low)


def test_the_camera_is_found(picture: NDArray[np.uint8]) -> None:
    refinement = Refinement(TRUTH, picture, steps=80, size=SIZE, elevation=10, spread=60)
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
    sliced = Refinement(ellipsoid(), picture, steps=LONG, size=SIZE, camera=camera)
    while sliced.done < LONG:
        sliced.run(7)
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
    camera = Lens.of(SIZE), POSE
    refinement = Refinement(TRUTH, picture, steps=STEPS, size=SIZE, camera=camera)
    refinement.run(STEPS)
    assert refinement.result() is refinement.start


def test_an_unusual_elevation_is_found_only_if_the_outline_asks_for_it(
    picture: NDArray[np.uint8],
) -> None:
    def found(spread: float) -> float:
        refinement = Refinement(TRUTH, picture, steps=40, size=SIZE, elevation=10, spread=spread)
        refinement.run(12)
        return math.degrees(float(refinement.pose.detach()[ELEVATION]))

    assert found(0.5) == pytest.approx(10, abs=1.5)
    assert found(60) > 18


def carved(start: GaussianTensors, picture: NDArray[np.uint8]) -> Refinement:
    """After the one step in which the silhouette counts for all sides."""
    refinement = Refinement(start, picture, steps=10, size=SIZE, camera=(Lens.of(SIZE), POSE))
    refinement.run(1)
    return refinement


def with_strays(count: int = 7600) -> GaussianTensors:
    """The truth, but for one in twenty Gaussians."""
    truth = ellipsoid((1.0, 0.5, 0.7), (0.3, 0.5, 0.8), count=count)
    positions = truth.positions.clone()
    positions[::20, 1] += 0.9
    return replace(truth, positions=positions)


def test_what_lies_far_outside_the_silhouette_is_removed(picture: NDArray[np.uint8]) -> None:
    start = with_strays()
    after = carved(start, picture).result()
    assert MIN_GAUSSIANS <= len(after.positions) <= 0.955 * 7600
    assert height(start) > 1.8 * height(TRUTH)
    assert height(after) < 1.25 * height(TRUTH)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_step_that_runs_out_of_memory_can_be_taken_again(
    picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """In each step, that drawing fails the first time, where there are as many."""
    start = with_strays()
    # So that each one is known again.
    start = replace(start, opacity_logits=2 + start.positions[:, 0])
    given: dict[str, Any] = {"steps": 10, "size": SIZE, "camera": (Lens.of(SIZE), POSE)}
    smooth, broken = Refinement(start, picture, **given), Refinement(start, picture, **given)
    smooth.run(10)
    drawn, draw = 0, Lens.draw

    def failing(lens: Lens, cloud: DeviceCloud, view: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        drawn += 1
        if drawn == number:
            raise torch.OutOfMemoryError("out of memory")
        return draw(lens, cloud, view)

    failed = []
    for step in range(10):
        drawn = 0
        monkeypatch.setattr(Lens, "draw", failing)
        try:
            broken.run(1)
        except torch.OutOfMemoryError:
            failed.append(step)
        monkeypatch.undo()
        broken.run(step + 1 - broken.done)
    assert 0 in failed
    assert number > 1 or failed == list(range(10))
    for one, other in zip(smooth.result().tensors(), broken.result().tensors(), strict=True):
        assert torch.equal(one, other)
    assert smooth.gain == broken.gain > 0
    assert smooth.carved == broken.carved > 0


def test_what_lies_just_outside_moves_to_the_edge(picture: NDArray[np.uint8]) -> None:
    refinement = carved(ellipsoid((1.0, 0.7, 0.7), (0.3, 0.5, 0.8), count=5000), picture)
    before, after = refinement.start, refinement.result()
    assert 0.2 < refinement.carved < 0.3
    assert len(after.positions) == len(before.positions)
    outlines = [photograph(cloud, POSE)[..., 3].astype(int) for cloud in (before, after)]
    off = [np.abs(outline - picture[..., 3]).mean() for outline in outlines]
    assert off[1] < 0.7 * off[0]


def test_every_step_of_a_slice_is_taken_once(picture: NDArray[np.uint8]) -> None:
    refinement = Refinement(ellipsoid(), picture, steps=5, size=SIZE, elevation=20)
    refinement.run(3)
    assert refinement.done == 3
    refinement.run(50)
    assert refinement.done == 5


@pytest.mark.cuda
def test_cuda_refines_as_the_cpu_does(picture: NDArray[np.uint8], refined: Refinement) -> None:
    start = GaussianTensors(*(tensor.cuda() for tensor in ellipsoid().tensors()))
    camera = Lens.of(SIZE), POSE
    refinement = Refinement(start, picture, steps=LONG, size=SIZE, camera=camera)
    refinement.run(LONG)
    after = refinement.result()
    assert after.positions.device.type == "cuda"
    assert height(after) == pytest.approx(height(refined.result()), abs=0.02)


@pytest.mark.parametrize("done", [5, 10])
def test_an_object_that_lies_between_the_judging_blocks_stays_as_it_is(done: int) -> None:
    """Its picture and its cloud leave nothing there, and no error to compare."""
    row, column = np.indices((512, 512))
    stick = (abs(row + column - 608) < 6) & (abs(row - column) < 400)
    assert not judging_blocks(512)[torch.from_numpy(stick)].any()
    rgba = np.zeros((512, 512, 4), dtype=np.uint8)
    rgba[stick] = (200, 30, 30, 255)
    start = ellipsoid((1.0, 0.007, 0.007), count=8_000)
    along = start.positions[:, :1]
    start = replace(
        start,
        positions=start.positions + along * torch.tensor([0.0, 1.0, 0.0]),
        log_scales=torch.full_like(start.log_scales, -7.0),
    )
    refinement = Refinement(start, rgba, steps=10, size=64, spread=3.0)
    refinement.run(done)
    assert refinement.silhouette < WORST_SILHOUETTE
    assert refinement.result() is refinement.start
    assert refinement.gain == 0


def test_no_elevation_is_tried_twice(
    picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []
    draw = Lens.draw

    def noting(lens: Lens, cloud: DeviceCloud, view: torch.Tensor) -> torch.Tensor:
        tried.append(round(math.degrees(math.asin(-float(view[2, 1]))), 1))
        return draw(lens, cloud, view)

    monkeypatch.setattr(Lens, "draw", noting)
    Refinement(ellipsoid(), picture, steps=1, size=SIZE, elevation=20, spread=60)
    each = sorted(set(tried))
    assert each == [-60.0, *range(-50, 60, 10), 60.0]
    assert len(tried) == 4 * len(each)
