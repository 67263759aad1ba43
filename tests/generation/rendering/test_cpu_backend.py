"""The CPU back end computes what the formulas of 3D Gaussian Splatting say, for any cloud."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from generation.rendering import orbit_camera, render_layers, render_views
from generation.rendering.cameras import Camera
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.rendering import sphere
from tests.support.clouds import make_cloud

# The principal point (20, 20) lies on a corner shared by four pixels and by four tiles.
CAMERA = orbit_camera(0.0, 0.0, radius=2.0, fov=50.0, size=40)
CENTRES = np.arange(40) + 0.5


def draw(
    cloud: GaussianCloud, camera: Camera = CAMERA
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rgb, coverage = render_layers(cloud, [camera], backend="cpu")
    return rgb[0], coverage[0]


def gaussian_picture(
    opacity: float, variance_x: float, variance_y: float, centre: tuple[float, float] = (20, 20)
) -> NDArray[np.float64]:
    """Alpha of one axis-aligned ellipse in pixels, cut off at 1/255."""
    x, y = CENTRES[None, :] - centre[0], CENTRES[:, None] - centre[1]
    alpha = opacity * np.exp(-0.5 * (x * x / variance_x + y * y / variance_y))
    return np.where(alpha < 1 / 255, 0.0, alpha)


def test_one_gaussian_is_its_projected_covariance_plus_the_blur() -> None:
    cloud = make_cloud([(0, 0, 0)], sigmas=(0.10, 0.04, 0.5), opacity=0.8, colors=[(1, 0.5, 0)])
    rgb, coverage = draw(cloud)
    pixels = CAMERA.fx / 2.0
    expected = gaussian_picture(0.8, (0.10 * pixels) ** 2 + 0.3, (0.04 * pixels) ** 2 + 0.3)
    assert coverage == pytest.approx(expected, abs=2e-6)
    assert rgb[..., 0] == pytest.approx(expected, abs=2e-6)
    assert rgb[..., 1] == pytest.approx(0.5 * expected, abs=2e-6)
    assert rgb[..., 2] == pytest.approx(0.0 * expected, abs=2e-6)


def test_quaternion_turns_the_ellipse_and_need_not_be_normalised() -> None:
    wide = make_cloud([(0, 0, 0)], sigmas=(0.10, 0.02, 0.02))
    quarter_turn_about_z = (3.0, 0.0, 0.0, 3.0)
    tall = make_cloud([(0, 0, 0)], sigmas=(0.10, 0.02, 0.02), rotation=quarter_turn_about_z)
    assert draw(tall)[1] == pytest.approx(draw(wide)[1].T, abs=1e-6)
    eighth = (np.cos(np.pi / 8), 0.0, 0.0, np.sin(np.pi / 8))
    slanted = draw(make_cloud([(0, 0, 0)], sigmas=(0.10, 0.02, 0.02), rotation=eighth))[1]
    # A turn from +x towards +y raises the right-hand end, which is up the rows.
    assert slanted[18, 21] > 0.4 > slanted[21, 21] * 10


def test_off_axis_gaussian_is_sheared_by_the_jacobian() -> None:
    """A ball off to the side is stretched by perspective along its direction."""
    camera = orbit_camera(0.0, 0.0, radius=2.0, fov=90.0, size=40)
    _, coverage = draw(make_cloud([(1.0, 0, 0)], sigmas=(0.1, 0.1, 0.1), opacity=0.99), camera)
    pixels = camera.fx / 2.0
    variance_x = (0.1 * pixels) ** 2 * (1 + 0.5**2) + 0.3
    variance_y = (0.1 * pixels) ** 2 + 0.3
    expected = gaussian_picture(0.99, variance_x, variance_y, centre=(30, 20))
    assert coverage == pytest.approx(expected, abs=5e-6)


def test_nearer_gaussians_are_blended_first_whatever_their_order() -> None:
    positions, colors = [(0.0, 0.0, -0.2), (0.0, 0.0, 0.2)], [(0.0, 0.0, 1.0), (1.0, 0.0, 0.0)]
    rgb, coverage = draw(make_cloud(positions, sigmas=(1, 1, 1), opacity=0.6, colors=colors))
    red, green, blue = rgb[20, 20]
    assert (red, green, blue) == pytest.approx((0.6, 0.0, 0.4 * 0.6), abs=1e-3)
    assert coverage[20, 20] == pytest.approx(1 - 0.4**2, abs=1e-3)
    swapped = make_cloud(positions[::-1], sigmas=(1, 1, 1), opacity=0.6, colors=colors[::-1])
    assert draw(swapped)[0] == pytest.approx(rgb)


def test_alpha_is_capped_and_blending_stops_before_light_is_gone() -> None:
    """Each layer passes 0.001 of the light: the second would leave 1e-6, so it is not drawn."""
    stack = [(0.0, 0.0, 0.1 * layer) for layer in range(3)]
    cloud = make_cloud(stack, sigmas=(5, 5, 5))
    cloud.opacity_logits[:] = 30.0
    _, coverage = draw(cloud)
    assert coverage[20, 20] == pytest.approx(0.999, abs=1e-6)


def test_long_stack_is_the_product_of_what_each_layer_passes() -> None:
    """More layers than one chunk holds, so that light is carried from chunk to chunk."""
    layers = 1300
    stack = [(0.0, 0.0, 1e-4 * layer) for layer in range(layers)]
    _, coverage = draw(make_cloud(stack, sigmas=(9, 9, 9), opacity=0.005))
    assert coverage[20, 20] == pytest.approx(1 - 0.995**layers, abs=1e-4)


@pytest.mark.parametrize(
    "cloud",
    [
        make_cloud([]),
        make_cloud([(0, 0, 1.995)]),
        make_cloud([(0, 0, 3)]),
        make_cloud([(0, 0, -99)], sigmas=(50, 50, 50)),
        make_cloud([(9, 0, 0)]),
        make_cloud([(0, 0, 0)], opacity=0.003),
        make_cloud([(0, 0, 0)], rotation=(0, 0, 0, 0)),
    ],
    ids=["empty", "nearer than near", "behind", "beyond far", "outside", "faint", "no rotation"],
)
def test_what_cannot_be_seen_leaves_nothing(cloud: GaussianCloud) -> None:
    rgb, coverage = draw(cloud)
    assert not rgb.any()
    assert not coverage.any()


def test_tiles_leave_no_seams_in_pictures_of_any_shape() -> None:
    """A crop of the picture, taken by moving the principal point, is the same picture."""
    cloud = sphere(600)
    whole = orbit_camera(24.0, 15.0, radius=2.5, fov=49.1, size=64)
    left, top, width, height = 21, 13, 30, 19
    crop = Camera(
        whole.world_to_camera, whole.fx, whole.fy, whole.cx - left, whole.cy - top, width, height
    )
    rgb, coverage = draw(cloud, whole)
    crop_rgb, crop_coverage = draw(cloud, crop)
    window = np.s_[top : top + height, left : left + width]
    # Rounding may move the layer at which light counts as gone, and that layer is worth 1e-4.
    assert crop_rgb == pytest.approx(rgb[window], abs=2e-4)
    assert crop_coverage == pytest.approx(coverage[window], abs=2e-4)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 1.0, 30.0]))
def test_wild_clouds_stay_within_bounds(seed: int, spread: float) -> None:
    """Huge, thin, near and far Gaussians: coverage is a share, and colour a mixture."""
    random = np.random.default_rng(seed)
    count = 60
    cloud = GaussianCloud(
        positions=random.normal(0, spread, (count, 3)).astype(np.float32),
        log_scales=random.uniform(-12, 8, (count, 3)).astype(np.float32),
        rotations=random.normal(0, 1, (count, 4)).astype(np.float32),
        opacity_logits=random.normal(0, 5, count).astype(np.float32),
        colors_dc=random.uniform(-1.7, 1.7, (count, 3)).astype(np.float32),
    )
    rgb, coverage = draw(cloud)
    assert np.isfinite(rgb).all()
    assert ((coverage >= 0) & (coverage <= 1)).all()
    assert ((rgb >= -1e-5) & (rgb <= coverage[..., None] + 1e-5)).all()


@pytest.mark.parametrize("log_scales", [(1000.0, 0.0, 0.0), (400.0, -3.0, -3.0)])
def test_overflowing_scales_are_not_drawn(log_scales: tuple[float, float, float]) -> None:
    cloud = make_cloud([(0, 0, 0), (0.1, 0, 0)])
    cloud.log_scales[0] = log_scales
    assert draw(cloud)[1] == pytest.approx(draw(make_cloud([(0.1, 0, 0)]))[1])


@pytest.mark.parametrize("angle", [0.5, 0.9, 1.3, 2.0, 2.6])
def test_rounding_cannot_make_a_needle_denser_than_its_opacity(angle: float) -> None:
    """Centred a million pixels away, it crosses the picture as a line of even coverage."""
    away = 5e4 * np.cos(angle), 5e4 * np.sin(angle), 0.0
    turn = np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)
    needle = make_cloud([away], sigmas=(1e6, 1e-4, 1e-4), rotation=turn, opacity=0.3)
    assert draw(needle)[1].max() <= 0.3 + 1e-6


def test_read_only_arrays_are_fine() -> None:
    cloud = make_cloud([(0, 0, 0)])
    for _, array in cloud.arrays():
        array.flags.writeable = False
    assert draw(cloud)[1].any()


def test_thread_counts_are_left_as_they_were() -> None:
    """PyTorch keeps one per thread, and gives a new thread the last one that was set anywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        render_views(sphere(500), size=32, backend="cpu")
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_fifty_thousand_gaussians_in_four_views_take_seconds() -> None:
    cloud = sphere(50_000)
    start = time.process_time()
    views = render_views(cloud, size=256, backend="cpu")
    seconds = time.process_time() - start
    assert seconds < 10.0
    assert views.shape == (4, 256, 256, 3)
    # A dense opaque ball: the middle of every view is covered, the corners are white.
    assert all((views[:, row, column] == 255).all() for row in (0, -1) for column in (0, -1))
    assert (views[:, 128, 128] < 250).any(axis=1).all()


def test_views_turn_around_the_object_in_equal_steps() -> None:
    """A ball at +z, seen from +z and then from ever further to its side, moves to the left."""
    marker = make_cloud([(0, 0, 0.5)], sigmas=(0.03, 0.03, 0.03), opacity=0.99)
    cameras = [orbit_camera(24.0 * step, radius=2.5, fov=49.1, size=64) for step in range(4)]
    _, coverage = render_layers(marker, cameras, backend="cpu")
    columns = [float((view.sum(axis=0) @ (np.arange(64) + 0.5)) / view.sum()) for view in coverage]
    assert columns[0] == pytest.approx(32.0, abs=1e-3)
    assert all(later < earlier - 1 for earlier, later in pairwise(columns))
