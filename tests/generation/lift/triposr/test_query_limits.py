"""Any number of points in bounded memory, and shapes that are refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from generation.errors import GenerationError
from generation.lift.triposr import SceneCode, TripoSR
from scripts.benchmarks.volume_render import Camera, render


@pytest.fixture
def chunked(tiny: TripoSR) -> Iterator[Callable[[int], TripoSR]]:
    before = tiny.query_chunk

    def with_chunk(size: int) -> TripoSR:
        tiny.query_chunk = size
        return tiny

    yield with_chunk
    tiny.query_chunk = before


@contextmanager
def device_with_room_for(model: TripoSR, rows: int) -> Iterator[list[int]]:
    """Runs out of memory in every decoder layer that gets more rows; lists what was tried."""
    tried: list[int] = []

    def limit(module: nn.Module, inputs: tuple[Tensor]) -> None:
        tried.append(len(inputs[0]))
        if len(inputs[0]) > rows:
            raise torch.OutOfMemoryError("no room")

    handle = model.decoder.layers[1].register_forward_pre_hook(limit)
    try:
        yield tried
    finally:
        handle.remove()


def some_points(count: int) -> Tensor:
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(0)) * 1.7 - 0.85


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 25])
def test_any_number_of_points(
    chunked: Callable[[int], TripoSR], code: SceneCode, count: int
) -> None:
    points = some_points(count)
    whole_density, whole_rgb = chunked(1000).query(points, code)
    density, rgb = chunked(8).query(points, code)
    assert density.shape == (count,)
    assert rgb.shape == (count, 3)
    torch.testing.assert_close(density, whole_density, rtol=1e-5, atol=0)
    torch.testing.assert_close(rgb, whole_rgb, rtol=0, atol=1e-6)
    assert chunked(8).query_density(points, code).shape == (count,)


def test_grid_and_render_do_not_depend_on_the_chunk(
    chunked: Callable[[int], TripoSR], code: SceneCode
) -> None:
    camera = Camera(height=6, width=6)
    grid, pixels = chunked(100_000).density_grid(code, 9), render(chunked(100_000), code, camera)
    torch.testing.assert_close(chunked(1).density_grid(code, 9), grid, rtol=1e-5, atol=0)
    torch.testing.assert_close(render(chunked(300), code, camera), pixels, rtol=0, atol=1e-6)


def test_the_grid_is_the_query_at_its_points(tiny: TripoSR, code: SceneCode) -> None:
    line = torch.linspace(-tiny.radius, tiny.radius, 7)
    points = torch.cartesian_prod(line, line, line)
    expected = tiny.query_density(points, code).view(7, 7, 7)
    torch.testing.assert_close(tiny.density_grid(code, 7), expected, rtol=2e-5, atol=0)


def test_density_is_differentiable_in_the_points(tiny: TripoSR, code: SceneCode) -> None:
    points = some_points(16).requires_grad_()
    log_density = tiny.query_density(points, code).log().sum()
    (gradient,) = torch.autograd.grad(log_density, points)
    step = 1e-3
    shifted = [some_points(16) + torch.tensor([sign * step, 0, 0]) for sign in (1, -1)]
    ahead, behind = (tiny.query_density(p, code).log() for p in shifted)
    slope = (ahead - behind) / (2 * step)
    # Bilinear features have kinks at texel borders, so not every point agrees.
    near = torch.isclose(gradient[:, 0], slope, rtol=0.02, atol=0.02)
    assert near.float().mean() > 0.8


def test_chunks_are_halved_when_memory_runs_out(
    chunked: Callable[[int], TripoSR], code: SceneCode
) -> None:
    points = some_points(10_000)
    expected, _ = chunked(100_000).query(points, code)
    model = chunked(8192)
    with device_with_room_for(model, 2500) as tried:
        found, _ = model.query(points, code)
    assert tried[:3] == [8192, 4096, 2048]
    assert max(tried[2:]) == 2048
    assert sum(tried[2:]) == 10_000
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    assert model.query_chunk == 8192


def test_grid_slices_are_halved_when_memory_runs_out(tiny: TripoSR, code: SceneCode) -> None:
    expected = tiny.density_grid(code, 16)
    with device_with_room_for(tiny, 3 * 16 * 16):
        found = tiny.density_grid(code, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_memory_that_is_never_enough_fails_the_request(tiny: TripoSR, code: SceneCode) -> None:
    with (
        device_with_room_for(tiny, 10) as tried,
        pytest.raises(GenerationError, match="chunks of 1024, the smallest"),
    ):
        tiny.query(some_points(5000), code)
    assert min(tried) == 1024


def test_wrong_shapes_are_named(tiny: TripoSR, code: SceneCode) -> None:
    with pytest.raises(ValueError, match=r"points have shape \(5, 2\), expected \(N, 3\)"):
        tiny.query(torch.zeros(5, 2), code)
    with pytest.raises(ValueError, match=r"scene code has shape \(1, 3, 8, 16, 16\)"):
        tiny.query(torch.zeros(5, 3), code[None])
    with pytest.raises(ValueError, match="resolution is 1, expected at least 2"):
        tiny.density_grid(code, 1)
