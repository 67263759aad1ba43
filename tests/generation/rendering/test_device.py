"""The device's way to the validator's pictures ends where the one through main memory does."""

import numpy as np
import pytest
import torch

from generation.rendering import as_seen_by_validator, render_views
from generation.rendering.device import dequantise, validator_views
from generation.rendering.device_cloud import DeviceCloud, seen_by_validator
from generation.rendering.gsplat_backend import is_usable
from protocol import spz
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.rendering import sphere
from tests.support.clouds import make_cloud

CPU = torch.device("cpu")


def wild_cloud(seed: int) -> GaussianCloud:
    """Every byte of every attribute, with opacities that saturate."""
    random = np.random.default_rng(seed)
    count = 3000
    return GaussianCloud(
        positions=random.normal(0.3, 0.4, (count, 3)).astype(np.float32),
        log_scales=random.uniform(-10, 5.9, (count, 3)).astype(np.float32),
        rotations=random.normal(0, 1, (count, 4)).astype(np.float32),
        opacity_logits=random.uniform(-8, 8, count).astype(np.float32),
        colors_dc=random.uniform(-3.3, 3.3, (count, 3)).astype(np.float32),
    )


def on_device(cloud: GaussianCloud, device: torch.device = CPU) -> DeviceCloud:
    return dequantise(spz.unpack(spz.encode(cloud)), device)


def assert_same(found: DeviceCloud, expected: GaussianCloud) -> None:
    assert found.positions.numpy() == pytest.approx(expected.positions, abs=1e-6)
    assert found.scales.log().numpy() == pytest.approx(expected.log_scales, abs=1e-5)
    assert found.rotations.numpy() == pytest.approx(expected.rotations, abs=1e-6)
    # In main memory the logit of an opacity of 0 or 1 is cut off at 10, before it is divided.
    assert found.opacities.numpy() == pytest.approx(expected.opacities, abs=2e-4)
    assert found.rgb.numpy() == pytest.approx(expected.rgb, abs=1e-6)


@pytest.mark.parametrize("cloud", [wild_cloud(0), sphere(500)], ids=["wild", "sphere"])
def test_a_file_is_dequantised_to_what_the_codec_makes_of_it(cloud: GaussianCloud) -> None:
    decoded = spz.decode(spz.encode(cloud))
    found = on_device(cloud)
    assert np.array_equal(found.positions.numpy(), decoded.positions)
    assert np.array_equal(found.rotations[:, 1:].numpy(), decoded.rotations[:, 1:])
    assert_same(found, decoded)


@pytest.mark.parametrize("cloud", [wild_cloud(1), sphere(500)], ids=["wild", "sphere"])
def test_the_validators_changes_are_those_of_main_memory(cloud: GaussianCloud) -> None:
    expected = as_seen_by_validator(spz.decode(spz.encode(cloud)))
    assert_same(seen_by_validator(on_device(cloud)), expected)


def test_the_pictures_are_those_of_main_memory() -> None:
    cloud = sphere(2000)
    expected = render_views(spz.decode(spz.encode(cloud)), range(16), 48, backend="cpu")
    found = validator_views(on_device(cloud), 48).numpy()
    assert found.shape == (16, 48, 48, 3)
    assert found.dtype == np.uint8
    # Truncation to whole numbers turns the last digit of a float into one step.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 0.002


def test_centres_that_coincide_show_nothing() -> None:
    found = on_device(make_cloud([(1, 2, 3), (1, 2, 3)]))
    assert (validator_views(found, 16) == 255).all()


def test_a_file_of_version_1_is_refused() -> None:
    packed = spz.PackedCloud(np.zeros(99, np.uint8), 1, 6, 12)
    with pytest.raises(ValueError, match="version 2"):
        dequantise(packed, CPU)


@pytest.mark.cuda
@pytest.mark.skipif(not is_usable(), reason="needs gsplat")
def test_the_gpus_pictures_are_those_of_main_memory() -> None:
    cloud = sphere(20_000)
    expected = render_views(spz.decode(spz.encode(cloud)), range(16), 128, backend="gsplat")
    found = validator_views(on_device(cloud, torch.device("cuda")), 128)
    assert found.is_cuda
    difference = np.abs(found.cpu().numpy().astype(int) - expected)
    assert difference.max() <= 3
    assert (difference > 0).mean() < 0.01
