"""The validator's data checks: each limit holds on both of its sides, and after SPZ."""

from dataclasses import replace

import numpy as np
import pytest

from generation.scoring.validity import Check, check
from protocol import spz
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.rendering import sphere

IDENTITY = (1.0, 0.0, 0.0, 0.0)


def with_opacities(cloud: GaussianCloud, share: float, opacity: float) -> GaussianCloud:
    """Gives the first `share` of the Gaussians this opacity."""
    logits = cloud.opacity_logits.copy()
    logits[: round(share * len(cloud))] = np.log(opacity / (1 - opacity))
    return replace(cloud, opacity_logits=logits)


def with_rotations(cloud: GaussianCloud, rotation: tuple[float, ...]) -> GaussianCloud:
    rows = np.tile(np.array(rotation, dtype=np.float32), (len(cloud), 1))
    return replace(cloud, rotations=rows)


def find(cloud: GaussianCloud, name: str, *, wire_bytes: int | None = None) -> Check:
    report = check(cloud, wire_bytes=wire_bytes)
    (found,) = [item for item in report.checks + report.advice if item.name == name]
    return found


def test_good_cloud_passes_without_warnings_before_and_after_spz() -> None:
    cloud = sphere(10_000)
    data = spz.encode(cloud)
    for seen in (cloud, spz.decode(data)):
        report = check(seen, wire_bytes=len(data))
        assert report.passed
        assert report.warnings == ()
        assert report.summary() == "valid"


@pytest.mark.parametrize(("count", "passed"), [(6_999, False), (7_000, True)])
def test_seven_thousand_gaussians_are_enough(count: int, passed: bool) -> None:
    found = find(sphere(count), "gaussians")
    assert (found.passed, found.measured, found.limit) == (passed, count, 7_000)


@pytest.mark.parametrize(("share", "passed"), [(0.8, True), (0.8001, False)])
def test_four_fifths_may_be_transparent(share: float, passed: bool) -> None:
    found = find(with_opacities(sphere(10_000), share, 5e-4), "transparent_share")
    assert found.passed is passed
    assert found.measured == pytest.approx(share)


@pytest.mark.parametrize(("opacity", "passed"), [(0.0015, False), (0.0021, True)])
def test_opacity_is_judged_as_spz_rounds_it(opacity: float, passed: bool) -> None:
    """0.0015 is over the validator's 0.001, but travels as the byte 0."""
    cloud = with_opacities(sphere(7_000), 1.0, opacity)
    assert find(cloud, "transparent_share").passed is passed
    assert find(spz.decode(spz.encode(cloud)), "transparent_share").passed is passed


@pytest.mark.parametrize(
    "rotation", [IDENTITY, (-1.0, 0.0, 0.0, 0.0), (7.0, 0.0, 0.0, 0.0), (1.0, -3e-3, 3e-3, 0.0)]
)
def test_identity_is_recognised_in_every_guise(rotation: tuple[float, ...]) -> None:
    cloud = with_rotations(sphere(7_000), rotation)
    assert not find(cloud, "identity_share").passed
    assert not find(spz.decode(spz.encode(cloud)), "identity_share").passed


def test_one_real_rotation_is_enough_and_half_turns_are_real() -> None:
    cloud = with_rotations(sphere(7_000), IDENTITY)
    cloud.rotations[-1] = (0.9, 0.1, 0.0, 0.0)
    found = find(cloud, "identity_share")
    assert found.passed
    assert found.measured == pytest.approx(6_999 / 7_000)
    assert find(with_rotations(cloud, (0.0, 1.0, 0.0, 0.0)), "identity_share").measured == 0.0


def test_empty_cloud_fails_every_check_and_gives_no_advice() -> None:
    report = check(sphere(7_000).select(np.zeros(7_000, dtype=bool)))
    assert [item.passed for item in report.checks] == [False, False, False]
    assert report.advice == ()


def test_small_cloud_is_warned_of_but_valid() -> None:
    report = check(sphere(7_000, radius=0.5))
    assert report.passed
    (warning,) = report.warnings
    assert warning.name == "largest_side"
    assert warning.measured == pytest.approx(1.0, abs=1e-3)
    assert report.summary() == f"valid; warning: largest_side is {warning.measured:g} (limit 1.5)"


def test_off_centre_is_measured_in_the_validators_frame() -> None:
    """Moving by (0, 0.3, 0) moves the scalar mean by 0.1, so y ends 0.2 off, before rescaling."""
    cloud = sphere(7_000)
    moved = replace(cloud, positions=cloud.positions + np.array([0, 0.3, 0], dtype=np.float32))
    found = find(moved, "off_centre")
    assert not found.passed
    assert found.measured == pytest.approx(0.2 * 1.5 / 1.6, abs=1e-3)
    same = replace(cloud, positions=cloud.positions + np.float32(5.0))
    assert find(same, "off_centre").measured == pytest.approx(0.0, abs=1e-3)


def test_one_floater_is_noticed() -> None:
    cloud = sphere(7_000)
    cloud.positions[0] = (0.0, 2.4, 0.0)
    found = find(cloud, "stray_ratio")
    assert not found.passed
    assert found.measured == pytest.approx(2.0, abs=0.02)


def test_coinciding_centres_do_not_break_the_report() -> None:
    cloud = sphere(7_000)
    cloud.positions[:] = 1.0
    found = find(cloud, "largest_side")
    assert (found.passed, found.measured) == (False, 0.0)


@pytest.mark.parametrize(("size", "passed"), [(2_000_000, True), (2_000_001, False)])
def test_wire_size_is_advice_when_known(size: int, passed: bool) -> None:
    report = check(sphere(7_000), wire_bytes=size)
    assert report.passed
    assert (report.warnings == ()) is passed
    assert "wire_bytes" not in {item.name for item in check(sphere(7_000)).advice}


def test_summary_names_each_failure_with_its_figures() -> None:
    report = check(with_rotations(sphere(100), IDENTITY))
    assert not report.passed
    assert report.summary() == (
        "invalid; gaussians is 100 (limit 7000); identity_share is 1 (limit 1)"
    )
