"""Every stage against the public code's numbers, on a small model with random weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.preprocess import image_to_tensor
from generation.lift.triposr.vit import interpolate_positions
from scripts.benchmarks.volume_render import Camera, render
from tests.generation.lift.triposr.conftest import Arrays


def assert_near(found: Tensor, expected: NDArray[np.float32], tolerance: float) -> None:
    assert tuple(found.shape) == expected.shape
    assert found.dtype == torch.float32
    error = np.abs(found.numpy() - expected).max()
    assert error <= tolerance, f"off by {error:.2e}, tolerance {tolerance:.0e}"


def assert_ratio(found: Tensor, expected: NDArray[np.float32], tolerance: float) -> None:
    assert_near(found / torch.from_numpy(expected), np.ones_like(expected), tolerance)


@pytest.fixture(scope="module")
def seen(tiny: TripoSR, image: NDArray[np.float32]) -> dict[str, Tensor]:
    """What came out of each module during one pass."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = output

        return tiny.get_submodule(name).register_forward_hook(hook)

    handles = [keep(name) for name, _ in tiny.named_modules() if name]
    outputs["scene_codes"] = tiny(image_to_tensor(image, 96))
    for handle in handles:
        handle.remove()  # type: ignore[attr-defined]
    return outputs


@pytest.mark.parametrize(
    ("module", "name", "tolerance"),
    [
        ("image_tokenizer.model.embeddings", "vit_embeddings", 2e-5),
        ("image_tokenizer.model.encoder.layer.0", "vit_layer0_out", 2e-5),
        ("backbone.proj_in", "backbone_proj_in_out", 1e-5),
        ("backbone.transformer_blocks.0", "backbone_block0_out", 1e-5),
        ("backbone", "backbone_out", 1e-5),
        ("scene_codes", "scene_codes", 1e-5),
    ],
)
def test_network(
    seen: dict[str, Tensor], expected: Arrays, module: str, name: str, tolerance: float
) -> None:
    assert_near(seen[module], expected[name], tolerance)


def test_image_tokens(seen: dict[str, Tensor], expected: Arrays) -> None:
    tokens = seen["image_tokenizer"].transpose(1, 2)[:, None]
    assert_near(tokens, expected["image_tokens"], 2e-5)
    # The newer interpolation rule would be found out.
    assert np.abs(tokens.numpy() - expected["image_tokens_new"]).max() > 0.1


def test_scene_codes_of_an_array(
    tiny: TripoSR, image: NDArray[np.float32], expected: Arrays
) -> None:
    assert_near(tiny.scene_codes(image), expected["scene_codes"][0], 1e-5)


def test_positions_of_the_small_model(tiny: TripoSR, expected: Arrays) -> None:
    table = tiny.image_tokenizer.model.embeddings.position_embeddings
    assert_near(interpolate_positions(table, 6, 6), expected["pos_embed"], 1e-6)


def test_positions_at_the_real_geometry(golden: Path) -> None:
    with np.load(golden / "tiny" / "pos_interp_14_to_32.npz") as arrays:
        table = torch.from_numpy(arrays["table"])
        assert_near(interpolate_positions(table, 32, 32), arrays["interpolated"], 1e-6)


def test_positions_at_the_native_size_are_the_table() -> None:
    table = torch.randn(1, 1 + 16, 4)
    assert interpolate_positions(table, 4, 4) is table


def test_query(tiny: TripoSR, code: SceneCode, expected: Arrays) -> None:
    points = torch.from_numpy(expected["query_points"])
    density, rgb = tiny.query(points, code)
    assert_ratio(density, expected["density_act"][:, 0], 5e-5)
    assert_near(rgb, expected["color"], 1e-5)
    assert_ratio(tiny.query_density(points, code), expected["density_act"][:, 0], 5e-5)


def test_density_grid(tiny: TripoSR, code: SceneCode, expected: Arrays) -> None:
    assert_ratio(tiny.density_grid(code, 32), expected["density_grid"], 5e-5)


def test_render(tiny: TripoSR, code: SceneCode, expected: Arrays) -> None:
    found = render(tiny, code, Camera(height=32, width=32))
    assert_near(found, expected["render"], 1e-5)


@pytest.mark.parametrize("view", range(4))
def test_render_round_the_object(
    tiny: TripoSR, code: SceneCode, expected: Arrays, view: int
) -> None:
    camera = Camera(elevation=20, azimuth=90 * view, distance=1.7, height=20, width=24)
    assert_near(render(tiny, code, camera), expected["render_extra"][view], 1e-5)


def test_rays_that_miss_the_cube_are_white(tiny: TripoSR, code: SceneCode) -> None:
    pixels = render(tiny, code, Camera(distance=8, fov=60, height=12, width=20))
    assert (pixels[0] == 1).all()
    assert (pixels[:, 0] == 1).all()
    assert pixels[5:7, 9:11].max() < 1
