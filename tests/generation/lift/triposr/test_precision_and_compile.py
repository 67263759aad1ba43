import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.preprocess import image_to_tensor
from scripts.benchmarks.volume_render import Camera, render


@pytest.fixture(scope="module")
def half(golden_tiny: str) -> TripoSR:
    return TripoSR.from_pretrained(golden_tiny, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def golden_tiny(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("golden") / "tiny")


def test_bfloat16_scene_codes_are_near(
    half: TripoSR, code: SceneCode, image: NDArray[np.float32]
) -> None:
    found = half.scene_codes(image)
    assert found.dtype == torch.bfloat16
    assert (found.float() - code).norm() / code.norm() < 2e-2


def test_bfloat16_queries_answer_in_float32(tiny: TripoSR, half: TripoSR, code: SceneCode) -> None:
    points = torch.rand(2000, 3, generator=torch.Generator().manual_seed(1)) * 1.7 - 0.85
    density, rgb = half.query(points, code.bfloat16())
    expected_density, expected_rgb = tiny.query(points, code)
    grid, pixels = (
        half.density_grid(code.bfloat16(), 16),
        render(half, code, Camera(height=4, width=4)),
    )
    assert {density.dtype, rgb.dtype, grid.dtype, pixels.dtype} == {torch.float32}
    log_error = (density.log() - expected_density.log()).abs()
    assert log_error.mean() < 0.02
    assert log_error.max() < 0.3
    assert (rgb - expected_rgb).abs().mean() < 5e-3
    grid_error = (grid.log() - tiny.density_grid(code, 16).log()).abs()
    assert grid_error.mean() < 0.02


def test_forward_is_one_graph(
    golden_tiny: str, image: NDArray[np.float32], code: SceneCode
) -> None:
    model = TripoSR.from_pretrained(golden_tiny)
    model.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(model.scene_codes(image), code, rtol=0, atol=1e-5)


def test_wrapped_forward_is_one_graph(tiny: TripoSR, image: NDArray[np.float32]) -> None:
    compiled = torch.compile(tiny, fullgraph=True, backend="eager")
    images = image_to_tensor(image, 96).repeat(2, 1, 1, 1)
    torch.testing.assert_close(compiled(images), tiny(images), rtol=0, atol=1e-5)
