"""The networks on a GPU: the numbers of the CPU, one seed one result, a pass as a CUDA graph."""

from collections.abc import Iterator

import pytest
import torch

from generation.acceleration.graphs import Captured
from generation.lift.triposplat import Sampler, SamplerState, TripoSplat
from generation.lift.triposplat.octree import sample_points
from generation.lift.triposplat.splats import to_gaussians
from tests.generation.lift.triposplat.conftest import GOLDEN, Tensors, off_by, recorded

pytestmark = pytest.mark.cuda


@pytest.fixture(params=[torch.float32, torch.float16, torch.bfloat16], ids=str)
def on_gpu(request: pytest.FixtureRequest) -> Iterator[TripoSplat]:
    before = torch.get_float32_matmul_precision()
    # Matrix products in TF32 would be off by 1e-3.
    torch.set_float32_matmul_precision("highest")
    yield TripoSplat.from_pretrained(GOLDEN / "tiny", device="cuda", dtype=request.param)
    torch.set_float32_matmul_precision(before)


def limit_of(model: TripoSplat) -> float:
    return {torch.float32: 5e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[model.flow.dtype]


def test_velocities_and_a_recorded_run(
    on_gpu: TripoSplat, sampler_reference: Tensors, log: list[str]
) -> None:
    given = sampler_reference
    features = given["feature1"], given["feature2"]
    eager = Sampler(on_gpu.flow, *features, steps=4)
    state = SamplerState(given["latent_noise"].cuda(), given["camera_noise"].cuda(), 0)
    first = eager.step(state)
    # Guidance multiplies the error of a pass by up to 5.
    expected = given["guided3_latent_steps"][1]
    assert off_by(first.latent.cpu(), expected) <= 5 * limit_of(on_gpu)
    flow = on_gpu.flow
    flow.velocities = Captured("flow", flow.velocities)  # type: ignore[assignment, method-assign]
    replayed = Sampler(on_gpu.flow, *features, steps=4)
    again = replayed.step(state)
    torch.testing.assert_close(again.latent, first.latent, rtol=0, atol=limit_of(on_gpu))
    while again.index < replayed.steps:
        again = replayed.step(again)
    assert again.latent.isfinite().all()
    assert not log, log


def test_points_and_gaussians(
    on_gpu: TripoSplat, octree_reference: Tensors, gaussians_reference: Tensors
) -> None:
    latent = octree_reference["latent"].cuda()
    decoder = on_gpu.decoder
    if on_gpu.flow.dtype == torch.float32:
        uniform = recorded(octree_reference, "l8", 8)
        points = sample_points(decoder.octree, latent, 48, uniform)
        assert torch.equal(points.cpu(), octree_reference["l8_points"])
    points = gaussians_reference["points"].cuda()
    features = decoder.gs(points, latent)
    assert off_by(features.cpu(), gaussians_reference["features"]) <= 2 * limit_of(on_gpu)


def test_one_seed_gives_one_cloud(on_gpu: TripoSplat, octree_reference: Tensors) -> None:
    latent = octree_reference["latent"]
    clouds = [to_gaussians(on_gpu.decoder.decode(latent, 4000, seed=5)) for _ in range(2)]
    for one, other in zip(*(cloud.tensors() for cloud in clouds), strict=True):
        assert one.is_cuda
        assert one.dtype == torch.float32
        assert torch.equal(one, other)


def test_what_is_left_out_is_what_the_cpu_leaves_out(
    on_gpu: TripoSplat, octree_reference: Tensors
) -> None:
    made = on_gpu.decoder.decode(octree_reference["latent"], 4000, seed=5)
    found = to_gaussians(made)
    expected = to_gaussians(type(made)(**{key: value.cpu() for key, value in vars(made).items()}))
    for one, other in zip(found.tensors(), expected.tensors(), strict=True):
        assert off_by(one.cpu(), other) <= 1e-5
