"""Clouds lie on the surface, face the right way and are what a validator accepts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from generation.errors import GenerationError
from generation.lift.triposr import TripoSR, TripoSRConfig
from generation.lift.triposr.config import ViTConfig
from generation.lift.triposr.splats import disc_rotations, extract_cloud
from generation.lift.triposr.surface import _even_targets
from generation.packing import LARGEST_SIDE
from generation.scoring.validity import check
from generation.settings import SplatSettings
from protocol import spz
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.random_triposr import untrained
from scripts.benchmarks.scenes import BOX_HALF_SIDES, box, linear_layers, sphere
from scripts.benchmarks.splats import compare, flat_discs, isotropic_on_surface, volume_renders

FEW = SplatSettings(max_gaussians=12_000, resolution=64)


def normals_of(cloud: GaussianCloud) -> np.ndarray:
    w, x, y, z = (cloud.rotations / np.linalg.norm(cloud.rotations, axis=1, keepdims=True)).T
    return np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1)


@pytest.fixture(scope="module")
def ball() -> GaussianCloud:
    return extract_cloud(*sphere(steepness=200.0), FEW)


def test_centres_lie_on_the_sphere(ball: GaussianCloud) -> None:
    radii = np.linalg.norm(ball.positions, axis=1)
    assert np.abs(radii - LARGEST_SIDE / 2).max() < 1e-3


def test_discs_are_flat_and_face_outwards(ball: GaussianCloud) -> None:
    outward = ball.positions / np.linalg.norm(ball.positions, axis=1, keepdims=True)
    cosine = np.abs((normals_of(ball) * outward).sum(axis=1))
    assert np.degrees(np.arccos(cosine.clip(0, 1))).max() < 1.0
    thin = np.exp(ball.log_scales[:, 2] - ball.log_scales[:, :2].min(axis=1))
    assert thin.max() < 0.25


def test_samples_leave_no_gaps(ball: GaussianCloud) -> None:
    directions = np.random.default_rng(0).normal(size=(20_000, 3))
    anywhere = LARGEST_SIDE / 2 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    spacing = np.sqrt(4 * np.pi * (LARGEST_SIDE / 2) ** 2 / len(ball))
    distance, _ = cKDTree(ball.positions).query(anywhere)
    assert np.quantile(distance, 0.999) < 1.25 * spacing
    assert distance.max() < 1.75 * spacing


def test_box_keeps_its_proportions_in_the_subnets_frame() -> None:
    cloud = extract_cloud(*box(), FEW)
    sides = np.ptp(cloud.positions, axis=0)
    x, y, z = BOX_HALF_SIDES
    np.testing.assert_allclose(sides, np.array([y, z, x]) / x * LARGEST_SIDE, rtol=0.01)
    np.testing.assert_allclose(
        cloud.positions.max(axis=0) + cloud.positions.min(axis=0), 0, atol=1e-5
    )


def test_the_input_view_faces_plus_z_with_its_right_at_plus_x() -> None:
    model, code = sphere()
    colours = extract_cloud(model, code, FEW)
    # In the model's world the input view looks from +x, its right is +y and up is +z.
    for axis, point in ((2, (0.6, 0, 0)), (0, (0, 0.6, 0)), (1, (0, 0, 0.6))):
        _, expected = model.query(torch.tensor([point]), code)
        nearest = colours.positions[:, axis].argmax()
        np.testing.assert_allclose(colours.rgb[nearest], expected[0], atol=0.03)


def test_the_seed_decides_the_sample() -> None:
    model, code = box()
    first, again = (spz.encode(extract_cloud(model, code, FEW, seed=7)) for _ in range(2))
    assert first == again
    assert spz.encode(extract_cloud(model, code, FEW, seed=8)) != first
    of_settings = extract_cloud(model, code, FEW.model_copy(update={"seed": 7}))
    assert spz.encode(of_settings) == first


def test_no_seed_reaches_beyond_the_surface() -> None:
    # In float32, this seed's last target of 10,000 would be rounded up to the whole area.
    assert len(extract_cloud(*box(), FEW, count=10_000, seed=2469)) > 9_900


@pytest.mark.parametrize("count", [1, 7, 12_000, 120_000, 10_000_000])
@pytest.mark.parametrize("offset", [0.0, 0.5, 0.9996, 1 - 2**-24])
def test_targets_of_a_sample_are_even_and_below_the_total(count: int, offset: float) -> None:
    for total in (count, 5 * count, 131_071 * count + 1):
        targets = _even_targets(torch.tensor(total), count, offset)
        assert (len(targets), targets.dtype) == (count, torch.int64)
        assert targets[0] >= 0
        assert targets[-1] < total
        steps = (targets[1:] - targets[:-1]).double() - total / count
        assert not (steps.abs() > 1).any()


@pytest.mark.parametrize("count", [8_000, 30_000])
def test_the_number_of_gaussians_is_kept_and_nearly_reached(count: int) -> None:
    cloud = extract_cloud(*box(), SplatSettings(max_gaussians=count, resolution=64))
    assert 0.99 * count <= len(cloud) <= count
    of_call = extract_cloud(*box(), FEW, count=count)
    assert spz.encode(of_call) == spz.encode(cloud)


def test_default_asset_is_one_to_two_megabytes() -> None:
    cloud = extract_cloud(*sphere(), SplatSettings())
    assert 1e6 <= len(spz.encode(cloud)) <= 2e6
    assert check(cloud).passed
    assert not check(cloud).warnings


def test_normals_survive_spz(ball: GaussianCloud) -> None:
    before, after = normals_of(ball), normals_of(spz.decode(spz.encode(ball)))
    cosine = np.abs((before * after).sum(axis=1)).clip(0, 1)
    assert np.degrees(np.arccos(cosine)).max() <= 1.2


def test_every_direction_survives_spz() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(50_000, 3, generator=generator), dim=1)
    directions[:3] = torch.eye(3)
    directions[3:6] = -torch.eye(3)
    count = len(directions)
    zeros = np.zeros((count, 3), dtype=np.float32)
    cloud = GaussianCloud(zeros, zeros, disc_rotations(directions).numpy(), zeros[:, 0], zeros)
    decoded = normals_of(spz.decode(spz.encode(cloud)))
    cosine = np.abs((decoded * directions.numpy()).sum(axis=1)).clip(0, 1)
    assert np.degrees(np.arccos(cosine)).max() <= 1.2


@pytest.mark.parametrize("steepness", [100.0, 2000.0])
def test_floaters_are_left_out(steepness: float) -> None:
    model, code = sphere(steepness)
    # Raised in one plane alone, a column stays outside the surface; where the raised columns of
    # two planes cross, near (0.7, 0.7, 0.7), a small body appears.
    texel = int((0.7 / model.radius + 1) / 2 * code.shape[-1])
    code[:2, 0, texel : texel + 2, texel : texel + 2] += 0.49 * steepness
    assert model.query_density(torch.full((1, 3), 0.71), code) > 25.0
    settings = SplatSettings(max_gaussians=12_000, inset=0.0)
    culled = extract_cloud(model, code, settings)
    assert np.abs(np.linalg.norm(culled.positions, axis=1) - LARGEST_SIDE / 2).max() < 0.01
    kept = extract_cloud(model, code, settings.model_copy(update={"min_component": 0.0}))
    assert np.linalg.norm(kept.positions, axis=1).max() > 0.9


def test_an_empty_field_is_an_error_with_its_range() -> None:
    model, code = sphere()
    code[:, 0] = -100.0
    with pytest.raises(GenerationError, match=r"no surface: it runs from .* nowhere above .* 25"):
        extract_cloud(model, code, FEW)


def test_a_full_field_is_an_error() -> None:
    model, code = sphere()
    code[:, 0] = 100.0
    with pytest.raises(GenerationError, match="everywhere above the threshold"):
        extract_cloud(model, code, FEW)


def test_an_exploding_field_is_an_error() -> None:
    model, code = sphere()
    linear_layers(model)[-1].bias[0] = 500.0
    with pytest.raises(GenerationError, match="not finite"):
        extract_cloud(model, code, FEW)


def test_too_small_a_surface_is_an_error() -> None:
    tiny = SplatSettings(max_gaussians=8_000, resolution=8)
    with pytest.raises(GenerationError, match="validator wants 7000"):
        extract_cloud(*sphere(), tiny)


def test_an_untrained_network_makes_an_accepted_cloud() -> None:
    config = TripoSRConfig(
        image_size=64,
        plane_size=8,
        num_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        plane_channels=8,
        decoder_neurons=16,
        decoder_hidden_layers=2,
        vit=ViTConfig(32, 1, 2, 32, image_size=64),
    )
    model: TripoSR = untrained(config)
    code = model.scene_codes(np.full((64, 64, 3), 0.5))
    assert check(extract_cloud(model, code, FEW)).passed


@pytest.mark.parametrize(("scene", "least_db"), [(sphere, 23.4), (box, 23.0)])
def test_likeness_to_the_volume_render_beats_round_gaussians(
    scene: Callable[[], tuple[TripoSR, torch.Tensor]], least_db: float
) -> None:
    model, code = scene()
    truth = volume_renders(model, code, [1], 128)
    ours = compare(flat_discs(model, code, 12_000), truth, [1], 128)
    naive = compare(isotropic_on_surface(model, code, 12_000), truth, [1], 128)
    # In so small a picture the rasteriser's blur, half a pixel, is most of the difference.
    assert ours["psnr_db"] > max(least_db, naive["psnr_db"] + 3)
    assert ours["holes"] < 0.001
