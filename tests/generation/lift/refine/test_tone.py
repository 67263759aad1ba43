"""Tone and light are found from one side, and hold for all."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from generation.lift.refine.pose import Lens, view_of
from generation.lift.refine.tone import match_tone, outward_normals
from generation.rendering.device_cloud import DeviceCloud
from scripts.benchmarks.rendering import sphere

SIZE = 32
LENS = Lens.of(SIZE)
VIEW = view_of(torch.tensor([0.3, 1.15, 0.0, 0.0]))
EVERYWHERE = torch.ones(SIZE, SIZE, dtype=torch.bool)


@pytest.fixture(scope="module")
def ball() -> DeviceCloud:
    """Coloured in stripes, so that colour and place do not go together."""
    placed = DeviceCloud.of(sphere(2000), torch.device("cpu"))
    stripes = (placed.positions * 9).sin() * 0.2 + 0.4
    return replace(placed, rgb=stripes)


def draw(cloud: DeviceCloud) -> Tensor:
    return LENS.draw(cloud, VIEW)


def lit(cloud: DeviceCloud) -> DeviceCloud:
    """In light from above and from the right."""
    light = 1 + cloud.positions @ torch.tensor([0.3, 0.3, 0.0]) / 0.8
    return replace(cloud, rgb=cloud.rgb * light[:, None])


def test_normals_point_outwards(ball: DeviceCloud) -> None:
    torch.testing.assert_close(outward_normals(ball), ball.positions / 0.8, atol=1e-4, rtol=0)


def test_the_side_that_no_picture_shows_follows(ball: DeviceCloud) -> None:
    truth = lit(ball)
    found = match_tone(ball, draw, draw(truth), EVERYWHERE)
    hidden = ball.positions[:, 2] < -0.2
    before = (ball.rgb - truth.rgb)[hidden].square().mean()
    assert float((found.rgb - truth.rgb)[hidden].square().mean()) < 0.5 * float(before)
    assert torch.equal(found.positions, ball.positions)


def test_a_picture_of_the_cloud_itself_changes_nothing(ball: DeviceCloud) -> None:
    found = match_tone(ball, draw, draw(ball), EVERYWHERE)
    torch.testing.assert_close(found.rgb, ball.rgb, atol=1e-5, rtol=0)


def test_pixels_that_do_not_count_have_no_part(ball: DeviceCloud) -> None:
    target = draw(ball)
    target[:, ::2, :3] = 1.0
    compared = EVERYWHERE.clone()
    compared[:, ::2] = False
    found = match_tone(ball, draw, target, compared)
    torch.testing.assert_close(found.rgb, ball.rgb, atol=1e-5, rtol=0)
    nothing = match_tone(ball, draw, target, torch.zeros_like(EVERYWHERE))
    torch.testing.assert_close(nothing.rgb, ball.rgb)
