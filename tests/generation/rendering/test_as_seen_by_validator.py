"""The validator's changes to a cloud: one mean, one scale, one division."""

import numpy as np
import pytest

from generation.rendering import as_seen_by_validator
from tests.support.clouds import make_cloud

CORNERS = [(0.0, 0.0, 0.0), (1.0, 0.5, 0.25)]


def test_one_scalar_is_subtracted_and_the_largest_side_becomes_1_5() -> None:
    seen = as_seen_by_validator(make_cloud(CORNERS))
    mean = (0 + 0 + 0 + 1 + 0.5 + 0.25) / 6
    expected = (np.array(CORNERS) - mean) * 1.5
    assert seen.positions == pytest.approx(expected, abs=1e-6)
    assert np.ptp(seen.positions, axis=0).max() == pytest.approx(1.5)


def test_scales_grow_with_positions() -> None:
    seen = as_seen_by_validator(make_cloud(CORNERS, sigmas=(0.1, 0.02, 0.001)))
    assert np.exp(seen.log_scales[0]) == pytest.approx([0.15, 0.03, 0.0015], rel=1e-5)


def test_a_side_of_one_turns_0_99_into_0_66() -> None:
    seen = as_seen_by_validator(make_cloud(CORNERS, opacity=0.99))
    assert seen.opacities == pytest.approx([0.66, 0.66], abs=1e-6)


def test_opacity_that_would_pass_one_stays_finite_and_opaque() -> None:
    seen = as_seen_by_validator(make_cloud([(0, 0, 0), (3, 0, 0)], opacity=0.99))
    assert seen.opacity_logits == pytest.approx([10.0, 10.0])
    assert (seen.opacities > 0.9999).all()


def test_vanishing_opacity_stays_finite_and_invisible() -> None:
    cloud = make_cloud(CORNERS)
    cloud.opacity_logits[:] = -200.0
    seen = as_seen_by_validator(cloud)
    assert seen.opacity_logits == pytest.approx([-10.0, -10.0])
    assert (seen.opacities < 1 / 255).all()


def test_rotations_and_colours_are_untouched() -> None:
    cloud = make_cloud(CORNERS, rotation=(0.5, 0.5, 0.5, 0.5))
    seen = as_seen_by_validator(cloud)
    assert np.array_equal(seen.rotations, cloud.rotations)
    assert np.array_equal(seen.colors_dc, cloud.colors_dc)


def test_empty_cloud_is_refused() -> None:
    with pytest.raises(ValueError, match="empty cloud"):
        as_seen_by_validator(make_cloud([]))


def test_coinciding_centres_are_refused() -> None:
    with pytest.raises(ValueError, match=r"all 2 Gaussians sit at \[1\.0, 2\.0, 3\.0\]"):
        as_seen_by_validator(make_cloud([(1, 2, 3), (1, 2, 3)]))
