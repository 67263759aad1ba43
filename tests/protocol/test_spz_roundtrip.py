"""An SPZ round trip moves every attribute by at most half a quantisation step."""

import numpy as np
import pytest
from hypothesis import example, given, settings

from protocol import spz
from protocol.gaussians import Float32Array, GaussianCloud
from tests.protocol.codec_data import clouds, golden_cloud, one_gaussian

ROUNDING = 2e-6  # float32 arithmetic on top of half a step


def _unit_upper(rotations: Float32Array) -> Float32Array:
    unit = rotations.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return np.where(unit[:, :1] < 0.0, -unit, unit).astype(np.float32)


@settings(max_examples=150)
@given(clouds())
@example(golden_cloud("small"))
@example(golden_cloud("sh3"))
def test_error_is_at_most_half_a_step(cloud: GaussianCloud) -> None:
    decoded = spz.decode(spz.encode(cloud))
    assert len(decoded) == len(cloud)

    def worst(left: Float32Array, right: Float32Array) -> float:
        return float(np.abs(left.astype(np.float64) - right).max())

    assert worst(decoded.positions, cloud.positions) <= 0.5 / 4096
    assert worst(decoded.log_scales, cloud.log_scales) <= 0.5 / 16 + ROUNDING
    assert worst(decoded.colors_dc, cloud.colors_dc) <= 0.5 / 38.25 + ROUNDING
    # The byte 0 or 255 decodes to -10 or 10, itself 5e-5 away from alpha 0 or 1.
    assert worst(decoded.opacities, cloud.opacities) <= 0.5 / 255 + 5e-5
    half = 0.5 / 127.5 + ROUNDING
    expected = _unit_upper(cloud.rotations).astype(np.float64)
    assert worst(decoded.rotations[:, 1:], expected[:, 1:].astype(np.float32)) <= half
    # w^2 = 1 - x^2 - y^2 - z^2 inherits the errors of the three; the clamp at 0 only helps.
    bound = (2.0 * np.abs(expected[:, 1:]) * half + half**2).sum(axis=1) + ROUNDING
    squared = decoded.rotations[:, 0].astype(np.float64) ** 2
    assert (np.abs(squared - expected[:, 0] ** 2) <= bound).all()
    assert (decoded.rotations[:, 0] >= 0.0).all()


@settings(max_examples=100)
@given(clouds())
def test_a_decoded_cloud_encodes_to_the_same_payload(cloud: GaussianCloud) -> None:
    first = spz.payload(cloud)
    decoded = spz.decode(spz.encode(cloud))
    # Rotation bytes are left out: x y z outside the unit ball are pulled back in by normalising.
    rotations = 16 + 16 * len(cloud)
    assert spz.payload(decoded)[:rotations] == first[:rotations]


@settings(max_examples=50)
@given(clouds())
def test_a_quaternion_and_its_negative_are_one_rotation(cloud: GaussianCloud) -> None:
    flipped = cloud.rotations.copy()
    flips = cloud.rotations[:, 0] != 0.0
    flipped[flips] *= -1.0
    negated = GaussianCloud(
        cloud.positions, cloud.log_scales, flipped, cloud.opacity_logits, cloud.colors_dc
    )
    assert spz.payload(negated) == spz.payload(cloud)


@pytest.mark.parametrize("attribute", ["log_scales", "colors_dc"])
@pytest.mark.parametrize("value", [-3e38, 3e38])
def test_values_outside_the_range_saturate(attribute: str, value: float) -> None:
    cloud = one_gaussian(**{attribute: [value] * 3})
    offset = 16 + {"colors_dc": 10, "log_scales": 13}[attribute]
    assert list(spz.payload(cloud)[offset : offset + 3]) == [255 if value > 0 else 0] * 3


@pytest.mark.parametrize(
    ("steps", "stored"), [(0.5, 1), (1.5, 2), (2.5, 3), (-0.5, -1), (-2.5, -3), (0.49999997, 0)]
)
def test_halves_round_away_from_zero(steps: float, stored: int) -> None:
    body = spz.payload(one_gaussian(positions=[steps / 4096, 0.0, 0.0]))
    assert int.from_bytes(body[16:19], "little", signed=True) == stored


def test_order_survives_more_than_one_chunk() -> None:
    count = 20_000
    cloud = golden_cloud("small").select(np.arange(count) % 500)
    positions = np.linspace(-1.0, 1.0, 3 * count, dtype=np.float32).reshape(count, 3)
    cloud = GaussianCloud(
        positions, cloud.log_scales, cloud.rotations, cloud.opacity_logits, cloud.colors_dc
    )
    decoded = spz.decode(spz.encode(cloud))
    np.testing.assert_allclose(decoded.positions, positions, rtol=0, atol=0.5 / 4096)
    part = spz.decode(spz.encode(cloud.select(np.arange(500))))
    for name, array in decoded.arrays():
        np.testing.assert_array_equal(array[:500], getattr(part, name), name)
        if name != "positions":
            np.testing.assert_array_equal(array[-500:], getattr(part, name), name)
