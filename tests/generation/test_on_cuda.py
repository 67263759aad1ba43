"""On a GPU, splats, TripoSR and the whole pipeline repeat themselves and agree with the CPU."""

import asyncio
import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from generation.engine import Engine
from generation.lift.triposr import TripoSR, TripoSRConfig
from generation.lift.triposr.config import ViTConfig
from generation.lift.triposr.fused import fused_decoder
from generation.lift.triposr.loading import functions_of
from generation.lift.triposr.splats import GaussianExtractor, extract_cloud, extract_gaussians
from generation.plan import Plan
from generation.presets import preset
from generation.result import Generation
from generation.scoring.validity import check
from generation.settings import SplatSettings
from generation.weights.store import ModelPaths
from protocol import spz
from protocol.gaussians import GaussianCloud
from protocol.tasks import TextTask
from scripts.benchmarks.random_triposr import untrained
from scripts.benchmarks.scenes import box, sphere

pytestmark = pytest.mark.cuda

FEW = SplatSettings(max_gaussians=12_000, resolution=64)
SMALL = TripoSRConfig(
    image_size=64,
    plane_size=16,
    num_channels=64,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    vit=ViTConfig(64, 2, 2, 128, image_size=64),
)


def assert_same_surface(found: GaussianCloud, expected: GaussianCloud) -> None:
    """Of two samples of one surface: as many discs, as large, nowhere far from each other."""
    assert len(found) == pytest.approx(len(expected), rel=0.01)
    sigma = np.exp(np.median(expected.log_scales[:, 0]))
    assert np.exp(np.median(found.log_scales[:, 0])) == pytest.approx(sigma, rel=0.01)
    for one, other in ((found, expected), (expected, found)):
        distance, nearest = cKDTree(one.positions).query(other.positions)
        # A disc's standard deviation is 0.8 of the spacing.
        assert distance.max() < 4 * sigma
        assert np.abs(one.rgb[nearest] - other.rgb).mean() < 0.02


@pytest.mark.parametrize("scene", [sphere, box])
def test_splats_repeat_themselves_and_agree_with_the_cpu(
    scene: Callable[[], tuple[TripoSR, Tensor]],
) -> None:
    model, code = scene()
    expected = extract_cloud(model, code, FEW)
    model, code = model.to("cuda"), code.to("cuda")
    clouds = [extract_cloud(model, code, FEW) for _ in range(2)]
    assert spz.encode(clouds[0]) == spz.encode(clouds[1])
    assert_same_surface(clouds[0], expected)
    packed = extract_gaussians(model, code, FEW).to_splats()
    assert spz.compress(packed.payload) == spz.encode(clouds[0])


def test_a_fused_decoder_makes_the_cloud_of_the_layers() -> None:
    model = untrained(SMALL).to("cuda").bfloat16()
    code = model.scene_codes(np.full((64, 64, 3), 0.5))
    # In float32: the layers' own rounding in bfloat16 moves the size of the discs by a percent.
    by_layers = extract_cloud(copy.deepcopy(model).float(), code.float(), FEW)
    settings = preset("gpu80").model_copy(update={"splats": FEW})
    functions_of(settings, model, backend="eager")
    assert model.fused is not None
    clouds = [extract_cloud(model, code, FEW) for _ in range(2)]
    assert model.fused is not None, "it failed, and the layers did it"
    assert spz.encode(clouds[0]) == spz.encode(clouds[1])
    assert check(clouds[0]).passed
    assert_same_surface(clouds[0], by_layers)


@pytest.mark.parametrize("count", [FEW.max_gaussians, FEW.max_gaussians // 2])
def test_recorded_splats_are_those_of_single_calls(count: int) -> None:
    model = untrained(SMALL).to("cuda").bfloat16()
    codes = [model.scene_codes(np.full((64, 64, 3), grey)) for grey in (0.5, 0.2)]
    model.fused = fused_decoder(model.decoder)
    recorded = GaussianExtractor(model, FEW, record=True)
    for code in (*codes, codes[0]):
        expected = extract_gaussians(model, code, FEW, count=count).to_splats()
        found = recorded.splats(code, count=count)
        assert len(found.cloud) == count, "a sample of another size is not recorded"
        assert np.array_equal(found.payload, expected.payload)
        assert np.array_equal(found.cloud.positions, expected.cloud.positions)


def test_triposr_repeats_itself_and_agrees_with_the_cpu() -> None:
    model = untrained(SMALL)
    image = np.random.default_rng(0).random((64, 64, 3))
    expected = model.scene_codes(image)
    model.to("cuda")
    found, again = model.scene_codes(image), model.scene_codes(image)
    assert torch.equal(found, again)
    # cuDNN may convolve in TensorFloat-32, which has 10 bits.
    assert (found.cpu() - expected).norm() / expected.norm() < 5e-3
    half = model.bfloat16().scene_codes(image).float().cpu()
    assert (half - expected).norm() / expected.norm() < 3e-2


def test_the_pipeline_repeats_itself_and_agrees_with_the_cpu(embedded_paths: ModelPaths) -> None:
    task = TextTask(id="t", prompt="a blue cube", seed=5)

    async def make(device: str, times: int) -> list[Generation]:
        engine = Engine(preset("embedded").model_copy(update={"device": device}))
        await engine.start()
        try:
            rung = engine.ladder[0]
            plan = Plan(rung, engine.route(task, rung))
            return [await engine.run(task, plan) for _ in range(times)]
        finally:
            await engine.close()

    found, again = asyncio.run(make("cuda", 2))
    assert found.spz == again.spz
    assert found.validity.passed
    (expected,) = asyncio.run(make("cpu", 1))
    difference = np.abs(found.image.astype(int) - expected.image)
    assert difference.mean() < 1.0
    # Steps of a byte in the picture move the surface by little.
    distance, nearest = cKDTree(expected.cloud.positions).query(found.cloud.positions)
    assert np.quantile(distance, 0.99) < 0.05
    assert np.abs(expected.cloud.rgb[nearest] - found.cloud.rgb).mean() < 0.05
