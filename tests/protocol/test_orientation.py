from dataclasses import replace

import numpy as np
import pytest

from protocol.gaussians import Float32Array, GaussianCloud
from protocol.orientation import turn_up_axis
from tests.support.fakes import ball


def covariances(cloud: GaussianCloud) -> Float32Array:
    """(N, 3, 3), the shapes that a renderer draws: R S S R^T."""
    w, x, y, z = (cloud.rotations / np.linalg.norm(cloud.rotations, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    turns = np.moveaxis(np.array(rows), 2, 0)
    scaled = turns * np.exp(cloud.log_scales)[:, None, :]
    return np.asarray(scaled @ scaled.transpose(0, 2, 1))


@pytest.fixture
def cloud() -> GaussianCloud:
    uneven = np.random.default_rng(1).uniform(-5, -2, (len(ball()), 3)).astype(np.float32)
    return GaussianCloud(**{**dict(ball().arrays()), "log_scales": uneven})


def turn_about(axis: int, degrees: float) -> Float32Array:
    """(3, 3), a turn about x (0), y (1) or z (2) by the right-hand rule."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (axis + 1) % 3, (axis + 2) % 3
    turn = np.eye(3)
    turn[first, first] = turn[second, second] = cos
    turn[first, second], turn[second, first] = -sin, sin
    return np.asarray(np.round(turn, 12))


def test_what_was_up_is_down_and_right_stays_right(cloud: GaussianCloud) -> None:
    turned = turn_up_axis(cloud, "-y")
    np.testing.assert_array_equal(turned.positions, cloud.positions * np.array([1, -1, -1]))


def test_up_front_and_right_are_where_competition_0_has_them() -> None:
    # The base miner's object has +z up, faces -y, and its right side in the picture is +x. The
    # miner turns it by +90 degrees about x before it writes the file.
    base_miner = turn_about(0, 90.0) @ np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]]).T
    ours = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)  # Right, up, front.
    points = replace(ball().select(np.arange(3)), positions=ours)
    np.testing.assert_array_equal(turn_up_axis(points, "-y").positions, base_miner.T)


def test_a_viewer_that_takes_minus_y_as_up_sees_the_front_first(cloud: GaussianCloud) -> None:
    # As viewers with the camera of OpenCV do: half a turn about x into the frame of OpenGL.
    turn = turn_about(0, 180.0)
    seen = turn_up_axis(cloud, "-y").positions @ turn.T
    np.testing.assert_allclose(seen, cloud.positions, atol=1e-7)


def test_every_gaussian_turns_with_its_place(cloud: GaussianCloud) -> None:
    turn = turn_about(0, 180.0)
    expected = turn @ covariances(cloud) @ turn.T
    np.testing.assert_allclose(covariances(turn_up_axis(cloud, "-y")), expected, atol=1e-7)


def test_a_second_half_turn_undoes_it_exactly(cloud: GaussianCloud) -> None:
    again = turn_up_axis(turn_up_axis(cloud, "-y"), "-y")
    np.testing.assert_array_equal(again.positions, cloud.positions)
    np.testing.assert_array_equal(again.rotations, -cloud.rotations)


def test_opacities_colours_and_sizes_are_untouched(cloud: GaussianCloud) -> None:
    turned = turn_up_axis(cloud, "-y")
    for name in ("log_scales", "opacity_logits", "colors_dc"):
        np.testing.assert_array_equal(getattr(turned, name), getattr(cloud, name))


def test_up_is_y_already(cloud: GaussianCloud) -> None:
    assert turn_up_axis(cloud, "+y") is cloud
