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


def test_what_was_up_is_down_and_the_front_stays_in_front(cloud: GaussianCloud) -> None:
    turned = turn_up_axis(cloud, "-y")
    np.testing.assert_array_equal(turned.positions, cloud.positions * np.array([-1, -1, 1]))


def test_every_gaussian_turns_with_its_place(cloud: GaussianCloud) -> None:
    turn = np.diag([-1.0, -1.0, 1.0])
    expected = turn @ covariances(cloud) @ turn.T
    np.testing.assert_allclose(covariances(turn_up_axis(cloud, "-y")), expected, atol=1e-7)


def test_the_half_turn_of_a_viewer_undoes_it_exactly(cloud: GaussianCloud) -> None:
    again = turn_up_axis(turn_up_axis(cloud, "-y"), "-y")
    np.testing.assert_array_equal(again.positions, cloud.positions)
    np.testing.assert_array_equal(again.rotations, -cloud.rotations)


def test_opacities_colours_and_sizes_are_untouched(cloud: GaussianCloud) -> None:
    turned = turn_up_axis(cloud, "-y")
    for name in ("log_scales", "opacity_logits", "colors_dc"):
        np.testing.assert_array_equal(getattr(turned, name), getattr(cloud, name))


def test_up_is_y_already(cloud: GaussianCloud) -> None:
    assert turn_up_axis(cloud, "+y") is cloud
