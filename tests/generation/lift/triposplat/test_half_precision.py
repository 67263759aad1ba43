"""The networks in float16 and bfloat16 stay as near to float32 as the public code, or nearer."""

import pytest
import torch
from torch import Tensor

from generation.lift.triposplat import Sampler, TripoSplat
from tests.generation.lift.triposplat.conftest import GOLDEN, Tensors, off_by, tensors_of

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture(scope="module")
def halved() -> dict[str, TripoSplat]:
    return {
        name: TripoSplat.from_pretrained(GOLDEN / "tiny", dtype=dtype)
        for name, dtype in DTYPES.items()
    }


@pytest.fixture(scope="module")
def public() -> Tensors:
    """What the public code computes in half precision."""
    return tensors_of("tiny/half.npz")


def spread(found: Tensor, expected: Tensor) -> float:
    return (found.float() - expected).pow(2).mean().sqrt().item()


def assert_as_near(found: Tensor, public: Tensor, expected: Tensor) -> None:
    """The error is that of the public code, up to chance: other values are rounded."""
    assert spread(found, expected) <= 1.05 * spread(public, expected)
    assert off_by(found.float(), expected) <= 1.25 * off_by(public, expected)


@pytest.mark.parametrize("name", DTYPES)
def test_velocity(
    halved: dict[str, TripoSplat], flow_reference: Tensors, public: Tensors, name: str
) -> None:
    flow, given = halved[name].flow, flow_reference
    condition = flow.condition(given["feature1"], given["feature2"])
    latent, camera = flow(given["latent"], given["camera"], given["t_model"], condition)
    assert latent.dtype == camera.dtype == DTYPES[name]
    assert_as_near(latent, public[f"{name}_velocity_latent"], given["velocity_latent"])


@pytest.mark.parametrize("name", DTYPES)
def test_angles_are_computed_in_float32(
    halved: dict[str, TripoSplat], flow_reference: Tensors, public: Tensors, name: str
) -> None:
    rotary = halved[name].flow.noise_repo_layers[0]
    found = torch.stack(rotary(flow_reference["h_latent_in"].to(DTYPES[name])), dim=-1)
    expected = flow_reference["repo0_rotation"]
    assert found.dtype == torch.float32
    assert spread(found, expected) < spread(public[f"{name}_repo0_rotation"], expected)


@pytest.mark.parametrize(("name", "limit"), [("fp16", 9.4e-3), ("bf16", 7.2e-2)])
def test_logits(
    halved: dict[str, TripoSplat], octree_reference: Tensors, name: str, limit: float
) -> None:
    given = octree_reference
    for level in range(1, 9):
        parent, resolution = (given[f"l8_{level}_{key}"] for key in ("parent", "resolution"))
        logits = halved[name].decoder.octree(parent[None], resolution, given["latent"])[0]
        assert off_by(logits, given[f"l8_{level}_logits"]) <= limit
        assert (logits.softmax(dim=-1).sum(dim=-1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("name", DTYPES)
def test_attributes(
    halved: dict[str, TripoSplat], gaussians_reference: Tensors, public: Tensors, name: str
) -> None:
    network, given = halved[name].decoder.gs, gaussians_reference
    features = network(given["points"], given["latent"])
    assert_as_near(features, public[f"{name}_features"], given["features"])
    made = network.gaussians(given["points"][0], features[0])
    assert_as_near(made.positions, public[f"{name}_xyz"], given["xyz"])
    opacities = made.opacity_logits.sigmoid()[:, None]
    assert_as_near(opacities, public[f"{name}_opacity"], given["opacity"])
    # The public code squares scales in half precision.
    expected = given["scaling"].log()
    assert spread(made.scales.log(), expected) < 0.6 * spread(
        public[f"{name}_scaling"].log(), expected
    )
    assert made.scales.min() >= network.config.scale_floor


@pytest.mark.parametrize("name", DTYPES)
def test_a_run_keeps_its_state_in_float32(
    halved: dict[str, TripoSplat], sampler_reference: Tensors, name: str
) -> None:
    given, model = sampler_reference, halved[name]
    run = Sampler(model.flow, given["feature1"], given["feature2"], steps=2)
    latent = run.sample(torch.Generator().manual_seed(0))
    assert latent.dtype == torch.float32
    assert latent.isfinite().all()
    made = model.decoder.decode(latent, 100, seed=0)
    for value in vars(made).values():
        assert value.dtype == torch.float32
        assert value.isfinite().all()
