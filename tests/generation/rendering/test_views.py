"""The door to both back ends: views, sizes, white, truncation, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from generation.rendering import (
    gsplat_backend,
    orbit_camera,
    render_layers,
    render_views,
    validator_camera,
)
from generation.rendering.gsplat_backend import is_usable
from protocol.errors import SetupError
from scripts.benchmarks.rendering import sphere
from tests.support.clouds import make_cloud

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="says what CPU machines say")


def test_default_is_the_duel_judges_four_views() -> None:
    cloud = sphere(300)
    views = render_views(cloud, size=24, backend="cpu")
    assert views.shape == (4, 24, 24, 3)
    assert views.dtype == np.uint8
    each = [render_views(cloud, [index], 24, backend="cpu")[0] for index in (1, 5, 9, 13)]
    assert np.array_equal(views, np.stack(each))


def test_background_is_white_and_colours_are_truncated() -> None:
    """Blending 0.5 grey at full cover by at most 0.999 over white: 255 (0.5 + 0.0005) = 127.6."""
    cloud = make_cloud([(0, 0, 0), (0, 0, -0.1)], sigmas=(99, 99, 0.01))
    cloud.opacity_logits[:] = 30.0
    view = render_views(cloud, [0], 16, as_validator=False, backend="cpu")[0]
    assert (view == 127).all()
    empty = render_views(make_cloud([]), [0], 16, as_validator=False, backend="cpu")
    assert (empty == 255).all()


def test_colours_outside_the_gamut_are_clipped_after_blending() -> None:
    cloud = make_cloud([(0, 0, 0)], sigmas=(9, 9, 9), opacity=0.5, colors=[(2.0, -2.0, 0.5)])
    view = render_views(cloud, [0], 16, as_validator=False, backend="cpu")[0]
    # Red 0.5 x 2 + 0.5 = 1.5 and green 0.5 x -2 + 0.5 = -0.5, both clipped; blue 0.75.
    assert view[8, 8].tolist() == pytest.approx([255, 0, 191], abs=1)


def test_validators_changes_are_made_by_default() -> None:
    """A small cloud fills the validator's picture, but fades."""
    small = make_cloud([(0, 0, 0), (0.1, 0.1, 0)], sigmas=(0.01, 0.01, 0.01), opacity=0.99)
    as_is = render_views(small, [0], 64, as_validator=False, backend="cpu")
    seen = render_views(small, [0], 64, backend="cpu")
    assert (seen < 250).sum() > 5 * (as_is < 250).sum() > 0
    assert seen.min() > 240 > as_is.min()


def test_layers_compose_to_the_view() -> None:
    cloud = sphere(400)
    rgb, coverage = render_layers(cloud, [validator_camera(3, 32)], backend="cpu")
    assert rgb.shape == (1, 32, 32, 3)
    assert coverage.shape == (1, 32, 32)
    assert rgb.dtype == coverage.dtype == np.float32
    composed = ((rgb + 1 - coverage[..., None]).clip(0, 1) * 255).astype(np.uint8)
    assert np.array_equal(composed, render_views(cloud, [3], 32, as_validator=False, backend="cpu"))


def test_no_cameras_or_mixed_sizes_are_refused() -> None:
    cloud = sphere(10)
    with pytest.raises(ValueError, match="no cameras"):
        render_layers(cloud, [])
    with pytest.raises(ValueError, match="share one picture size"):
        render_layers(cloud, [validator_camera(0, 16), validator_camera(0, 32)])


def test_unknown_back_end_is_refused() -> None:
    with pytest.raises(ValueError, match="'vulkan'"):
        render_views(sphere(10), backend="vulkan")  # type: ignore[arg-type]


@needs_no_cuda
def test_gsplat_without_cuda_says_what_to_do() -> None:
    with pytest.raises(SetupError, match="CUDA device") as caught:
        render_views(sphere(10), size=16, backend="gsplat")
    assert 'backend="cpu"' in caught.value.fix


@needs_no_cuda
def test_auto_is_the_cpu_where_gsplat_cannot_run() -> None:
    assert not is_usable()
    cloud, camera = sphere(200), orbit_camera(10.0, radius=2.5, fov=49.1, size=24)
    assert np.array_equal(
        render_layers(cloud, [camera])[0], render_layers(cloud, [camera], backend="cpu")[0]
    )


@pytest.mark.timeout(10)
def test_a_compiler_that_exits_ends_the_wait_for_gsplat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def exits(*arguments: object) -> None:
        raise SystemExit(1)

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_backend, "find_spec", lambda name: object())
    monkeypatch.setattr(gsplat_backend, "place", lambda cloud: cloud)
    monkeypatch.setattr(gsplat_backend, "rasterize", exits)
    gsplat_backend.start_trial.cache_clear()
    try:
        assert not is_usable()
    finally:
        gsplat_backend.start_trial.cache_clear()


def test_one_process_after_another_compiles_gsplat(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    held: list[bool] = []

    def compile_it(*_: object) -> None:
        try:
            FileLock(tmp_path / "gsplat.lock", timeout=0, is_singleton=False).acquire()
        except Timeout:
            held.append(True)

    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_backend, "find_spec", lambda name: name)
    monkeypatch.setattr(gsplat_backend, "place", lambda cloud: cloud)
    monkeypatch.setattr(gsplat_backend, "rasterize", compile_it)
    gsplat_backend.start_trial.cache_clear()
    try:
        assert is_usable()
    finally:
        gsplat_backend.start_trial.cache_clear()
    assert held == [True]
    with FileLock(tmp_path / "gsplat.lock", timeout=0):
        pass  # It is free again.


def test_the_wait_for_a_process_that_compiles_gsplat_has_an_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: list[str]
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gsplat_backend, "find_spec", lambda name: name)
    monkeypatch.setattr(gsplat_backend, "_COMPILING_LIMIT_S", 0.1)
    gsplat_backend.start_trial.cache_clear()
    try:
        with FileLock(tmp_path / "gsplat.lock", is_singleton=False):
            assert not is_usable()
    finally:
        gsplat_backend.start_trial.cache_clear()
    assert "gsplat.lock" in log[0]


@pytest.mark.cuda
@pytest.mark.skipif(not is_usable(), reason="needs gsplat")
def test_gsplat_agrees_with_the_cpu() -> None:
    cloud = sphere(20_000)
    cameras = [validator_camera(index, 128) for index in range(16)]
    for ours, theirs in zip(
        render_layers(cloud, cameras, backend="cpu"),
        render_layers(cloud, cameras, backend="gsplat"),
        strict=True,
    ):
        assert np.square(ours - theirs).mean() < 10 ** (-60 / 10)
