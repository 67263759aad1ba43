"""The finished cloud: the subnet's frame, and what is left out of it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.errors import GenerationError
from generation.lift.triposplat import TripoSplat
from generation.lift.triposplat.gaussians import PointGaussians
from generation.lift.triposplat.splats import to_gaussians
from generation.packing import LARGEST_SIDE
from generation.scoring.validity import check
from tests.generation.lift.triposplat.conftest import Tensors, off_by

# What the public viewer turns the exported file by: 90 degrees about y, then 180 about x.
VIEWER = torch.tensor([[0.0, 0, 1], [0, -1, 0], [1, 0, 0]])


def of_points(points: Tensor, *, seed: int = 0) -> PointGaussians:
    generator = torch.Generator().manual_seed(seed)
    count = len(points)
    return PointGaussians(
        positions=points,
        scales=0.005 + 0.01 * torch.rand(count, 3, generator=generator),
        rotations=torch.randn(count, 4, generator=generator),
        opacity_logits=torch.rand(count, generator=generator),
        colors_dc=torch.randn(count, 3, generator=generator),
    )


def ball(count: int, *, radius: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(count, 3, generator=generator)
    return radius * torch.nn.functional.normalize(directions, dim=-1)


def covariances(log_scales: Tensor, rotations: Tensor) -> Tensor:
    w, x, y, z = torch.nn.functional.normalize(rotations, dim=-1).unbind(-1)
    turn = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=-1,
    ).view(-1, 3, 3)
    scaled = turn * log_scales.exp()[:, None]
    return scaled @ scaled.transpose(1, 2)


def test_the_cloud_is_what_the_public_viewer_shows(
    tiny: TripoSplat, gaussians_reference: Tensors
) -> None:
    given = gaussians_reference
    made = tiny.decoder.gs.gaussians(given["points"][0], given["features"][0])
    found = to_gaussians(made)
    kept = torch.isin(made.opacity_logits, found.opacity_logits)
    assert 150 < kept.sum() == len(found.positions)
    positions, _, dc, logits, log_scales, rotations = torch.split(
        given["ply"][kept], [3, 3, 3, 1, 3, 4], dim=-1
    )
    seen = positions @ VIEWER.T
    low, high = seen.aminmax(dim=0)
    size = LARGEST_SIDE / (high - low).max()
    assert off_by(found.positions, (seen - (low + high) / 2) * size) <= 1e-5
    assert off_by(found.colors_dc, dc) <= 1e-5
    assert off_by(found.opacity_logits[:, None], logits) <= 1e-5
    expected = VIEWER @ covariances(log_scales + size.log(), rotations) @ VIEWER.T
    ellipsoids = covariances(found.log_scales, found.rotations)
    assert off_by(ellipsoids / expected.abs().amax(), expected / expected.abs().amax()) <= 1e-5


def test_front_up_and_right_lie_where_the_subnet_has_them() -> None:
    front, right, up = torch.eye(3) * torch.tensor([0.3, 0.2, 0.4])
    rod = torch.linspace(-1, 1, 200)[:, None]
    made = of_points(torch.cat([rod * front, rod * right, rod * up]))
    found = to_gaussians(made).positions
    high = found.amax(dim=0)
    torch.testing.assert_close(high, LARGEST_SIDE / 0.8 * torch.tensor([0.2, 0.4, 0.3]))
    torch.testing.assert_close(found.amin(dim=0), -high)
    torch.testing.assert_close(found[199], torch.tensor([0.0, 0.0, 0.3 * LARGEST_SIDE / 0.8]))


def test_a_cloud_off_centre_passes_every_check_of_a_validator() -> None:
    points = ball(8000) * torch.tensor([1.0, 0.5, 0.7]) + torch.tensor([0.1, -0.15, 0.05])
    cloud = to_gaussians(of_points(points)).to_cloud()
    report = check(cloud)
    assert report.passed
    assert not report.warnings
    assert np.ptp(cloud.positions, axis=0).max() == pytest.approx(LARGEST_SIDE, abs=1e-5)
    assert np.abs(np.linalg.norm(cloud.rotations, axis=1) - 1).max() < 1e-6
    assert (cloud.rotations[:, 0] >= 0).all()


def test_ellipsoids_are_turned_with_the_cloud_whichever_sign_their_quaternions_have() -> None:
    made = of_points(ball(8000))
    found = to_gaussians(made)
    assert (made.rotations[:, 0] < 0).sum() > 100
    size = LARGEST_SIDE / (made.positions.amax(dim=0) - made.positions.amin(dim=0)).max()
    expected = covariances((made.scales * size).log(), made.rotations).roll((-1, -1), dims=(1, 2))
    ellipsoids = covariances(found.log_scales, found.rotations)
    assert off_by(ellipsoids / expected.amax(), expected / expected.amax()) <= 1e-5


def test_what_floats_far_from_the_object_is_left_out() -> None:
    floating = torch.tensor([[-0.45, 0.45, 0.45], [0.49, 0.0, -0.49]]).repeat(10, 1)
    made = of_points(torch.cat([ball(8000), floating]))
    found = to_gaussians(made)
    assert len(found.positions) == 8000
    assert off_by(found.colors_dc, made.colors_dc[:8000]) == 0
    assert not check(found.to_cloud()).warnings


def test_a_thin_part_that_is_tied_to_the_object_stays() -> None:
    antenna = torch.linspace(0.3, 0.49, 12)[:, None] * torch.tensor([0.0, 0, 1])
    points = torch.cat([ball(8000), antenna])
    assert len(to_gaussians(of_points(points)).positions) == len(points)


def test_a_large_part_stays_and_so_does_one_of_many_small_ones() -> None:
    two = torch.cat([ball(400, radius=0.1) - 0.3, ball(400, radius=0.1) + 0.3])
    assert len(to_gaussians(of_points(two)).positions) == 800
    lattice = torch.linspace(-0.4, 0.4, 7)
    dust = torch.cartesian_prod(lattice, lattice, lattice)
    assert len(to_gaussians(of_points(dust)).positions) == len(dust)


def test_invisible_gaussians_neither_stay_nor_tie_parts_together() -> None:
    bridge = torch.linspace(0.3, 0.49, 40)[:, None] * torch.tensor([0.0, 0, 1])
    made = of_points(torch.cat([ball(8000), bridge]))
    logits = made.opacity_logits.clone()
    logits[8000:8039] = math.log(0.4 / 255)
    found = to_gaussians(replace(made, opacity_logits=logits))
    assert len(found.positions) == 8000
    logits[8000:8039] = math.log(0.6 / 255)
    assert len(to_gaussians(replace(made, opacity_logits=logits)).positions) == 8040


def test_an_object_with_too_little_to_see_is_an_error_of_this_request() -> None:
    made = of_points(ball(8000))
    logits = torch.where(torch.arange(8000) < 6999, 1.0, -9.0)
    with pytest.raises(GenerationError, match="6999 of 8000 Gaussians can be seen"):
        to_gaussians(replace(made, opacity_logits=logits))
    with pytest.raises(GenerationError, match="0 of 10 Gaussians can be seen"):
        to_gaussians(replace(of_points(ball(10)), opacity_logits=torch.full((10,), -9.0)))


@pytest.mark.parametrize(
    "name", ["positions", "scales", "rotations", "opacity_logits", "colors_dc"]
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error_of_this_request(name: str, value: float) -> None:
    made = of_points(ball(100))
    spoilt = getattr(made, name).clone()
    spoilt.view(-1)[7] = value
    with pytest.raises(GenerationError, match="not finite"):
        to_gaussians(replace(made, **{name: spoilt}))
