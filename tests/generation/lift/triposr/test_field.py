"""A field reads scenes with the fused decoder if there is one, and with the layers if it fails."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.acceleration.streams import to_host
from generation.errors import OutOfMemory
from generation.lift.triposr import SceneCode, TripoSR, TripoSRConfig, fused, lattice
from generation.lift.triposr.config import ViTConfig
from generation.lift.triposr.field import SceneField
from generation.lift.triposr.fused import FusedDecoder, fused_decoder
from generation.lift.triposr.surface import Surface, find_crossings, surface_at
from generation.lift.triposr.triplane import Decoder, linear_layers, point_features, sample_planes
from scripts.benchmarks.random_triposr import untrained

# The published decoder, on planes and networks that are small.
CONFIG = TripoSRConfig(
    image_size=64,
    plane_size=8,
    num_channels=64,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=1,
    vit=ViTConfig(32, 1, 2, 32, image_size=64),
)


def somewhere(count: int, device: str = "cpu") -> Tensor:
    points = torch.rand(count, 3, generator=torch.Generator().manual_seed(count)) * 1.8 - 0.9
    return points.to(device)


class _Broken(FusedDecoder):
    def __call__(self, terms: Tensor, points: Tensor, radius: float, *, outputs: int) -> Tensor:
        raise self.error

    error: Exception = RuntimeError("no such instruction\nand more")


def test_a_field_is_the_networks_own(tiny: TripoSR, code: SceneCode) -> None:
    points = somewhere(500)
    density, rgb = tiny.query(points, code)
    field = SceneField(tiny, code)
    torch.testing.assert_close(field.log_density(points), density.log(), rtol=0, atol=1e-5)
    found, colours = field.query(points)
    torch.testing.assert_close(found, density.log(), rtol=0, atol=1e-5)
    assert torch.equal(colours, rgb)
    grid = field.log_density_lattice(9)
    torch.testing.assert_close(grid, tiny.density_grid(code, 9).log(), rtol=0, atol=1e-5)


def test_interpolated_terms_are_the_first_layer_of_interpolated_features(
    tiny: TripoSR, code: SceneCode
) -> None:
    points = somewhere(300) / tiny.radius
    first = linear_layers(tiny.decoder)[0]
    expected = first(point_features(code, points))
    terms = FusedDecoder(tiny.decoder).terms(code)
    x, y, z = points.unbind(1)
    places = torch.stack([torch.stack(pair, dim=1) for pair in ((x, y), (x, z), (y, z))])
    sampled = sample_planes(terms.permute(0, 3, 1, 2), places)
    torch.testing.assert_close(sampled.sum(dim=0) + first.bias, expected, rtol=1e-4, atol=1e-4)


def test_a_fused_decoder_that_fails_leaves_the_layers_with_one_warning(
    tiny: TripoSR, code: SceneCode, log: list[str]
) -> None:
    model = copy.copy(tiny)
    model.fused = _Broken(tiny.decoder)
    points = somewhere(100)
    field, plain = SceneField(model, code), SceneField(tiny, code)
    for _ in range(2):
        assert torch.equal(field.log_density(points), plain.log_density(points))
    left: list[object] = [model.fused, tiny.fused]
    assert left == [None, None]
    (line,) = log
    assert line.startswith("WARNING TripoSR's decoder runs layer by layer from now on")
    assert line.rstrip().endswith("RuntimeError: no such instruction")


def test_a_lattice_survives_a_fused_decoder_that_fails(tiny: TripoSR, code: SceneCode) -> None:
    model = copy.copy(tiny)
    model.fused = _Broken(tiny.decoder)
    lattice = SceneField(model, code).log_density_lattice(9)
    expected = tiny.log_density_grid(code, 9)
    torch.testing.assert_close(lattice, expected, rtol=0, atol=1e-4)


def test_too_little_memory_is_no_reason_to_give_the_fused_decoder_up(
    tiny: TripoSR, code: SceneCode
) -> None:
    model = copy.copy(tiny)
    model.fused = broken = _Broken(tiny.decoder)
    broken.error = torch.OutOfMemoryError("full")
    with pytest.raises(OutOfMemory):
        SceneField(model, code).log_density(somewhere(10))
    assert model.fused is broken


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"),
    ],
)
def test_an_error_of_the_device_is_no_reason_to_give_the_fused_decoder_up(
    tiny: TripoSR, code: SceneCode, log: list[str], error: Exception
) -> None:
    model = copy.copy(tiny)
    model.fused = broken = _Broken(tiny.decoder)
    broken.error = error
    with pytest.raises(RuntimeError) as caught:
        SceneField(model, code).log_density(somewhere(10))
    assert caught.value is error
    assert model.fused is broken
    assert log == []


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: no kernel image is available for execution"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
        RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448"),
    ],
)
def test_a_device_that_does_not_take_the_fused_decoder_uses_the_layers(
    tiny: TripoSR, code: SceneCode, error: Exception
) -> None:
    model = copy.copy(tiny)
    model.fused = broken = _Broken(tiny.decoder)
    broken.error = error
    points = somewhere(10)
    expected = SceneField(tiny, code).log_density(points)
    assert torch.equal(SceneField(model, code).log_density(points), expected)
    assert model.fused is None


def test_a_decoder_that_cannot_be_fused_says_why(
    tiny: TripoSR, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert fused_decoder(tiny.decoder) is None
    monkeypatch.setattr(fused, "find_spec", lambda name: object())
    assert fused_decoder(tiny.decoder) is None
    assert fused_decoder(Decoder(TripoSRConfig(decoder_neurons=24)).bfloat16()) is None
    reasons = (
        "Triton is not installed",
        "torch.float32, not of 16 bits",
        "its width is 24",
    )
    assert len(log) == len(reasons)
    for line, reason in zip(log, reasons, strict=True):
        assert reason in line


@pytest.fixture(scope="module")
def halves() -> tuple[TripoSR, TripoSR, SceneCode]:
    """On a GPU: a network in bfloat16, one with its weights in float32, a scene."""
    model = untrained(CONFIG).to("cuda")
    half = copy.deepcopy(model).bfloat16()
    exact = copy.deepcopy(half).float()
    code = model.scene_codes(np.full((64, 64, 3), 0.5))
    half.fused = fused_decoder(half.decoder)
    assert half.fused is not None
    return half, exact, code


@pytest.mark.cuda
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 20_000])
def test_the_fused_decoder_computes_what_float32_does(
    halves: tuple[TripoSR, TripoSR, SceneCode], count: int
) -> None:
    half, exact, code = halves
    points = somewhere(count, "cuda")
    density, rgb = SceneField(half, code).query(points)
    alone = SceneField(half, code).log_density(points)
    assert half.fused is not None
    assert torch.equal(density, alone)
    expected, colours = SceneField(exact, code).query(points)
    # The layers one by one are 0.03 off on average.
    torch.testing.assert_close(density, expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(rgb, colours, rtol=0, atol=1e-3)


@pytest.mark.cuda
def test_the_fused_lattice_is_float32s_lattice(halves: tuple[TripoSR, TripoSR, SceneCode]) -> None:
    half, exact, code = halves
    found = SceneField(half, code).log_density_lattice(40)
    expected = exact.log_density_grid(code, 40)
    assert half.fused is not None
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-3)


def _surface(field: SceneField) -> Surface:
    level = math.log(25.0)
    found = lattice.search_lattice(field, 48, 25.0, 0.02)
    crossings = find_crossings(field, *found, count=12_000, level=level, seed=3)
    return surface_at(field, crossings, level)


@pytest.mark.cuda
def test_a_surface_by_the_fused_decoder_lies_on_the_level(
    halves: tuple[TripoSR, TripoSR, SceneCode],
) -> None:
    half, exact, code = halves
    with torch.inference_mode():
        samples = [_surface(SceneField(model, code)) for model in (half, half, exact)]
        values = [SceneField(exact, code).log_density(each.points) for each in samples]
    assert half.fused is not None
    assert torch.equal(samples[0].points, samples[1].points)
    assert torch.equal(samples[0].normals, samples[1].normals)
    off, _, least = (np.quantile(np.abs(to_host(v) - math.log(25.0)), 0.99) for v in values)
    assert off < least + 0.005
    assert samples[0].area.item() == pytest.approx(samples[2].area.item(), rel=2e-3)
    assert abs(len(samples[0].points) - len(samples[2].points)) < 10


@pytest.mark.parametrize("resolution", [32, 33, 64])
def test_a_lattice_sampled_in_two_passes_has_the_surface_of_one_sampled_whole(
    resolution: int,
) -> None:
    model, level, asked = untrained(CONFIG), math.log(25.0), []
    scene = model.scene_codes(np.random.default_rng(1).random((64, 64, 3)))
    field = SceneField(model, scene)
    query = model.query_log_density

    def counting(points: Tensor, scene_code: Tensor) -> Tensor:
        asked.append(len(points))
        return query(points, scene_code)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "query_log_density", counting)
        found = lattice.sampled_lattice(field, resolution, level)
    expected = field.log_density_lattice(resolution)
    assert sum(asked) < 0.75 * resolution**3
    assert torch.equal(found > level, expected > level)
    cells = lattice.active_cells(expected, level)
    assert cells.any()
    assert torch.equal(lattice.active_cells(found, level), cells)
    corners = torch.nn.functional.max_pool3d(cells.float()[None, None], 2, 1, padding=1)[0, 0] > 0
    torch.testing.assert_close(found[corners], expected[corners], rtol=0, atol=1e-4)
    # Elsewhere it is near enough to tell how the surface lies.
    assert (found - expected).abs().mean() < 0.1 * expected.std()
