"""What a device packs are the bytes of the SPZ encoder, and what it measures the checks' own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.packing import GaussianTensors, _alpha_limits
from generation.scoring.validity import check, report_on
from protocol import spz
from protocol.errors import CodecError
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.rendering import sphere

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def on(device: str, cloud: GaussianCloud) -> GaussianTensors:
    return GaussianTensors(
        **{name: torch.from_numpy(array).to(device) for name, array in cloud.arrays()}
    )


def ugly(seed: int, count: int = 500) -> GaussianCloud:
    """A cloud of every magnitude: halves, saturated values, both ends of what SPZ holds."""
    rng = np.random.default_rng(seed)

    def drawn(columns: int, scale: float, step: float) -> np.ndarray:
        values = rng.normal(size=(count, columns)) * scale ** rng.uniform(-3, 1, (count, columns))
        ties = (np.round(values / step) + 0.5) * step
        return np.where(rng.random(values.shape) < 0.3, ties, values).astype(np.float32)

    positions = drawn(3, 100.0, 1 / 4096).clip(spz.POSITION_MIN, spz.POSITION_MAX)
    positions[0], positions[1] = spz.POSITION_MIN, spz.POSITION_MAX
    rotations = drawn(4, 1000.0, 1 / 127.5)
    rotations[:6] = [
        *([1, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0]),
        *([-0.0, 0, 0, -1], [2e-17, 0, 0, 0], [0, 0, 9e17, 0]),
    ]
    rotations[6:][np.linalg.norm(rotations[6:], axis=1) < 1e-6] = 1.0
    logits = drawn(1, 30.0, 0.1)[:, 0]
    logits[:2] = -3e38, 3e38
    return GaussianCloud(
        positions=positions,
        log_scales=drawn(3, 30.0, 1 / 16),
        rotations=rotations,
        opacity_logits=logits,
        colors_dc=drawn(3, 30.0, 1 / 38.25),
    )


@pytest.mark.parametrize("device", DEVICES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_the_bytes_are_those_of_the_encoder(device: str, seed: int) -> None:
    cloud = ugly(seed)
    splats = on(device, cloud).to_splats()
    assert splats.payload.tobytes() == spz.payload(cloud)
    for (name, found), (_, expected) in zip(splats.cloud.arrays(), cloud.arrays(), strict=True):
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_packed_payload_compresses_to_the_encoders_file() -> None:
    for cloud in (sphere(1), sphere(60_000)):
        payload = on("cpu", cloud).to_splats().payload
        assert spz.compress(payload, level=1) == spz.encode(cloud, level=1)
    with pytest.raises(ValueError, match="level must be 1 to 22, got 23"):
        spz.compress(payload, level=23)


@pytest.mark.parametrize("device", DEVICES)
def test_opacities_around_each_limit_get_the_encoders_byte(device: str) -> None:
    limits = _alpha_limits(torch.device("cpu")).numpy()
    around = [np.nextafter(limits, np.float32(way)) for way in (-np.inf, np.inf)]
    logits = np.concatenate([limits, *around])
    zeros = np.zeros((len(logits), 3), np.float32)
    rotations = np.ones((len(logits), 4), np.float32)
    cloud = GaussianCloud(zeros, zeros, rotations, logits, zeros)
    assert on(device, cloud).to_splats().payload.tobytes() == spz.payload(cloud)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("count", [1, 7, 12_000])
def test_a_report_on_what_was_measured_is_that_of_the_cloud(device: str, count: int) -> None:
    cloud = sphere(count)
    logits, rotations = cloud.opacity_logits.copy(), cloud.rotations.copy()
    logits[: count // 3], rotations[: count // 2] = -9.0, (1, 0, 0, 0.004)
    positions = cloud.positions.copy()
    positions[0] *= 1.5
    cloud = replace(cloud, opacity_logits=logits, rotations=rotations, positions=positions)
    found = report_on(on(device, cloud).to_splats().measures, wire_bytes=5)
    expected = check(cloud, wire_bytes=5)
    for one, other in zip(
        found.checks + found.advice, expected.checks + expected.advice, strict=True
    ):
        assert (one.name, one.passed) == (other.name, other.passed)
        assert one.measured == pytest.approx(other.measured, rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_what_spz_cannot_hold_is_refused_as_by_the_encoder(device: str) -> None:
    cloud = sphere(100)
    far, none = cloud.positions.copy(), cloud.rotations.copy()
    far[7, 1], none[8] = 2048.0, 0.0
    for bad in (replace(cloud, positions=far), replace(cloud, rotations=none)):
        with pytest.raises(CodecError) as expected:
            spz.payload(bad)
        with pytest.raises(CodecError) as found:
            on(device, bad).to_splats()
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("device", DEVICES)
def test_numbers_that_are_not_finite_are_refused(device: str) -> None:
    tensors = on(device, sphere(100))
    tensors.log_scales[3, 1] = float("nan")
    with pytest.raises(ValueError, match="log_scales holds 1 non-finite values"):
        tensors.to_splats()
