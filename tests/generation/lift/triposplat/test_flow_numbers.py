"""The flow transformer against the public code's numbers, on a small model with random weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generation.lift.triposplat import PUBLIC, TripoSplat
from generation.lift.triposplat.tables import point_table, sinusoid, sobol_table
from tests.generation.lift.triposplat.conftest import Tensors, off_by


@pytest.fixture(scope="module")
def seen(tiny: TripoSplat, flow_reference: Tensors) -> dict[str, tuple[Any, Any]]:
    """What went into each module, and what came out, during one pass."""
    passed: dict[str, tuple[Any, Any]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            passed[name] = inputs[0], output

        return hook

    flow, given = tiny.flow, flow_reference
    handles = [m.register_forward_hook(keep(name)) for name, m in flow.named_modules() if name]
    condition = flow.condition(given["feature1"], given["feature2"])
    velocities = flow(given["latent"], given["camera"], given["t_model"], condition)
    for handle in handles:
        handle.remove()
    return passed | {"": (None, velocities)}


@pytest.mark.parametrize(
    ("module", "side", "name", "limit"),
    [
        ("t_embedder", 0, "t_sinusoid", 1e-6),
        ("t_embedder", 1, "t_emb", 1e-6),
        ("adaLN_modulation", 1, "t_mod", 1e-6),
        ("noise_refiner.0", 0, "h_latent_in", 2e-6),
        ("context_refiner.0", 0, "h_cond_in", 2e-6),
        ("cam_refiner", 1, "camera_in", 2e-6),
        ("noise_repo_layers.0.final_map", 1, "repo0_axis_positions", 1e-6),
        # Angles reach 30.
        ("noise_refiner.0.attn.q_norm", 0, "attn0_q_rotated", 2e-5),
        ("noise_refiner.0.attn.q_norm", 1, "attn0_q_normed", 2e-5),
        ("noise_refiner.0.attn.k_norm", 1, "attn0_k_normed", 2e-5),
        ("noise_refiner.0.attn", 1, "attn0_out", 5e-6),
        ("noise_refiner.0.mlp", 1, "mlp0_out", 5e-6),
        ("noise_refiner.0", 1, "noise_refiner0_out", 5e-6),
        ("noise_refiner.1", 1, "noise_refiner1_out", 5e-6),
        ("context_refiner.0", 1, "context_refiner0_out", 1e-5),
        ("context_refiner.1", 1, "context_refiner1_out", 1e-5),
        ("blocks.0", 1, "block0_out", 1e-5),
        ("blocks.1", 1, "block1_out", 1e-5),
        ("out_layer", 0, "out_layer_in", 1e-5),
        ("cam_out_layer", 0, "cam_out_layer_in", 1e-5),
    ],
)
def test_inner_values(
    seen: dict[str, tuple[Any, Any]],
    flow_reference: Tensors,
    module: str,
    side: int,
    name: str,
    limit: float,
) -> None:
    assert off_by(seen[module][side], flow_reference[name]) <= limit


def test_velocities(seen: dict[str, tuple[Any, Any]], flow_reference: Tensors) -> None:
    latent, camera = seen[""][1]
    assert off_by(latent, flow_reference["velocity_latent"]) <= 5e-6
    assert off_by(camera, flow_reference["velocity_camera"]) <= 5e-6


def test_rotations(seen: dict[str, tuple[Any, Any]], flow_reference: Tensors) -> None:
    rotation = torch.stack(seen["noise_repo_layers.0"][1], dim=-1)
    assert off_by(rotation, flow_reference["repo0_rotation"]) <= 1e-5


@pytest.mark.parametrize("tokens", [1, 17])
def test_an_empty_condition_needs_one_token(
    tiny: TripoSplat, flow_reference: Tensors, tokens: int
) -> None:
    given = flow_reference
    nothing = (torch.zeros_like(given[name][:, :tokens]) for name in ("feature1", "feature2"))
    condition = tiny.flow.condition(*nothing).expand(-1, 17, -1)
    inputs = given["latent"], given["camera"], given["t_model"]
    negative = tiny.flow(*inputs, condition)
    assert off_by(negative[0], given["velocity_latent_negative"]) <= 5e-6
    assert off_by(negative[1], given["velocity_camera_negative"]) <= 5e-6
    towards = tiny.flow(*inputs, tiny.flow.condition(given["feature1"], given["feature2"]))
    for name, with_it, without in zip(("latent", "camera"), towards, negative, strict=True):
        guided = 3 * with_it - 2 * without
        assert off_by(guided, given[f"velocity_{name}_guided3"]) <= 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_of_an_empty_condition_counts_for_all(
    tiny: TripoSplat, flow_reference: Tensors, dtype: torch.dtype
) -> None:
    given = flow_reference
    flow = copy.deepcopy(tiny.flow).to(dtype)
    inputs = given["latent"], given["camera"], given["t_model"]
    features = given["feature1"], given["feature2"]
    empty = flow.condition(*(torch.zeros_like(x[:, :1]) for x in features))
    limit = 5e-6 if dtype == torch.float32 else 8e-2
    negative = flow(*inputs, empty, copies=17)
    guided = flow.velocities(*inputs, flow.condition(*features), empty, torch.tensor(3.0))
    for name, without, led in zip(("latent", "camera"), negative, guided, strict=True):
        assert without.dtype == dtype
        assert off_by(without.float(), given[f"velocity_{name}_negative"]) <= limit
        assert off_by(led, given[f"velocity_{name}_guided3"]) <= 4 * limit
    # The count is not lost in rounding: one more or less shows.
    other = flow(*inputs, empty, copies=12)[0]
    assert off_by(other.float(), given["velocity_latent_negative"]) > limit


def test_a_batch_of_two_with_different_times(tiny: TripoSplat, flow_reference: Tensors) -> None:
    given = {
        key.removeprefix("batch2_"): value
        for key, value in flow_reference.items()
        if key.startswith("batch2_")
    }
    condition = tiny.flow.condition(given["feature1"], given["feature2"])
    latent, camera = tiny.flow(given["latent"], given["camera"], given["t_model"], condition)
    # At time 812.5 the last bit of one frequency, on which makes of CPU do not agree, is 5e-6.
    assert off_by(latent[:1], given["velocity_latent"][:1]) <= 1e-5
    assert off_by(latent[1:], given["velocity_latent"][1:]) <= 5e-6
    assert off_by(camera, given["velocity_camera"]) <= 5e-6


def test_places_of_the_tokens(
    tiny: TripoSplat, flow_reference: Tensors, tables_reference: Tensors
) -> None:
    assert off_by(tiny.flow.positions[None], flow_reference["pos_embed"]) <= 1e-6
    places = PUBLIC.flow.positions
    points, table = sobol_table(8192, 1024, places.seed, places.octaves)
    assert torch.equal(points, tables_reference["sobol"])
    assert off_by(table[tables_reference["flow_rows"]], tables_reference["flow_embed"]) <= 1e-6


def test_table_of_points(tables_reference: Tensors) -> None:
    table = point_table(tables_reference["decoder_points"], 1024, 10)
    assert off_by(table, tables_reference["decoder_embed"]) <= 1e-6


def test_sinusoids(tables_reference: Tensors) -> None:
    def of_level(values: Tensor) -> Tensor:
        return sinusoid(values, PUBLIC.octree.level_sinusoid, 2 * torch.pi)

    found = of_level(tables_reference["level"])
    assert off_by(found, tables_reference["level_sinusoid"]) <= 1e-6
    # The last bit of one frequency, times 1000.
    found = sinusoid(tables_reference["time_model"], PUBLIC.flow.time_sinusoid)
    assert off_by(found, tables_reference["time_sinusoid"]) <= 5e-5
    others = torch.arange(256) % 128 != 12
    expected = tables_reference["time_sinusoid"][:, others]
    assert off_by(found[:, others], expected) <= 1e-6
