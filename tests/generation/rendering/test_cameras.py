"""The validator's cameras stand where its facts say."""

import numpy as np
import pytest
from numpy.typing import NDArray

from generation.rendering.cameras import Camera, orbit_camera, validator_camera


def project(camera: Camera, point: tuple[float, float, float]) -> NDArray[np.float64]:
    """Pixel coordinates and depth of a world point."""
    local = camera.world_to_camera @ np.array([*point, 1.0])
    u, v, depth = camera.intrinsics @ local[:3]
    return np.array([u / depth, v / depth, depth])


def test_azimuth_0_looks_from_plus_z_with_y_up_and_x_to_the_right() -> None:
    camera = orbit_camera(0.0, 0.0, radius=2.5, fov=49.1, size=518)
    assert project(camera, (0, 0, 0)) == pytest.approx([259, 259, 2.5])
    assert project(camera, (0, 0, 1))[2] == pytest.approx(1.5)
    assert project(camera, (0, 0.5, 0))[1] < 259
    assert project(camera, (0.5, 0, 0))[0] > 259


def test_azimuth_90_looks_from_plus_x() -> None:
    camera = orbit_camera(90.0, 0.0, radius=2.5, fov=49.1, size=518)
    assert project(camera, (1, 0, 0)) == pytest.approx([259, 259, 1.5])
    assert project(camera, (0, 0, -0.5))[0] > 259


def test_field_of_view_spans_the_picture() -> None:
    camera = orbit_camera(0.0, 0.0, radius=2.0, fov=90.0, size=100)
    assert project(camera, (0, 2.0, 0))[1] == pytest.approx(0.0)
    assert project(camera, (2.0, 0, 0))[0] == pytest.approx(100.0)


def test_validator_looks_down_from_15_degrees_at_2_5_units() -> None:
    for index in range(16):
        rotation = validator_camera(index).world_to_camera[:3, :3]
        centre = -rotation.T @ validator_camera(index).world_to_camera[:3, 3]
        assert np.linalg.norm(centre) == pytest.approx(2.5)
        assert centre[1] == pytest.approx(2.5 * np.sin(np.radians(15)))
        turn = np.radians(24.0 * index)
        level = 2.5 * np.cos(np.radians(15))
        assert centre[[0, 2]] == pytest.approx([level * np.sin(turn), level * np.cos(turn)])
        assert rotation @ rotation.T == pytest.approx(np.eye(3))
        assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_last_view_repeats_the_first() -> None:
    first, last = validator_camera(0), validator_camera(15)
    assert last.world_to_camera == pytest.approx(first.world_to_camera)


def test_one_pixel_is_0_0044_units_at_the_object() -> None:
    camera = validator_camera(0)
    assert (camera.cx, camera.cy, camera.width, camera.height) == (259, 259, 518, 518)
    assert 2.5 / camera.fy == pytest.approx(0.0044, abs=5e-5)


@pytest.mark.parametrize("index", [-1, 16])
def test_unknown_view_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"views 0 to 15, got {index}"):
        validator_camera(index)


@pytest.mark.parametrize(
    ("elevation", "radius", "fov", "size"),
    [(90, 1, 50, 8), (0, 0, 50, 8), (0, 1, 180, 8), (0, 1, 50, 0), (0, float("nan"), 50, 8)],
)
def test_impossible_orbit_is_refused(
    elevation: float, radius: float, fov: float, size: int
) -> None:
    with pytest.raises(ValueError, match="orbit camera needs"):
        orbit_camera(0.0, elevation, radius=radius, fov=fov, size=size)
