"""The full-size networks, with weights from a recipe, against the public code's numbers.

Needs 1.5 GB and half a minute, so it runs only when it is asked for:
`FULL_SIZE_TESTS=1 python -m pytest tests/generation/lift/triposplat/test_full_size_numbers.py`.
"""

import json
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from generation.lift.triposplat import PUBLIC, FlowTransformer, SplatDecoder
from generation.lift.triposplat.octree import sample_points
from tests.generation.lift.triposplat.conftest import GOLDEN, Tensors, off_by, tensors_of

pytestmark = pytest.mark.skipif(
    "FULL_SIZE_TESTS" not in os.environ, reason="needs 1.5 GB: set FULL_SIZE_TESTS=1"
)


def filled(network: nn.Module, name: str) -> nn.Module:
    """Gives a network on `meta` the weights of the recipe."""
    recipe = json.loads((GOLDEN / "full" / "fill.json").read_text())[name]
    tables = tensors_of("tables/tables.npz")
    own = {
        "gs.points_offset_perturbation": tables["perturbation"],
        "gs.base_offset_scale": tables["base_offset_scale"],
    }
    state: dict[str, Tensor] = {}
    for number, (key, value) in enumerate(network.state_dict().items()):
        base, scale = recipe[key]
        if base == "own":
            state[key] = own[key]
            continue
        drawn = torch.randn(value.shape, generator=torch.Generator().manual_seed(number))
        bases = {
            "zero": torch.tensor(0.0),
            "one": torch.tensor(1.0),
            "linspace": torch.linspace(1, 16, len(value) if value.ndim else 1),
        }
        state[key] = drawn.mul_(scale).add_(bases[base])
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False).eval()


def probes(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Collects a few of the values that leave the named modules."""
    found: dict[str, Tensor] = {}
    for module, name in names.items():
        network.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, name=name: found.update({name: output[0, ::16, ::64]})
        )
    return found


def test_flow() -> None:
    given = tensors_of("full/flow.npz")
    with torch.device("meta"):
        network = FlowTransformer(PUBLIC.flow)
    flow = filled(network, "flow")
    names = {f"blocks.{number}": f"probe_block{number:02d}" for number in range(24)}
    for number in range(2):
        for refiner in ("noise_refiner", "context_refiner"):
            names[f"{refiner}.{number}"] = f"probe_{refiner}{number}"
    found = probes(flow, names)
    inputs = given["latent"], given["camera"], given["t_model"]
    condition = network.condition(given["feature1"], given["feature2"])
    latent, camera = flow(*inputs, condition)
    worst = {name: off_by(value, given[name]) for name, value in found.items()}
    assert off_by(latent, given["velocity_latent"]) <= 2e-5
    assert off_by(camera, given["velocity_camera"]) <= 2e-5
    assert max(worst.values()) <= 1e-4, worst
    nothing = (torch.zeros_like(given[name]) for name in ("feature1", "feature2"))
    latent, camera = flow(*inputs, network.condition(*nothing))
    assert off_by(latent, given["velocity_latent_negative"]) <= 2e-5
    assert off_by(camera, given["velocity_camera_negative"]) <= 2e-5


def draws_by_cell(given: Tensors) -> Iterator[Tensor]:
    """The public code draws for cells in the order of their counts."""
    for level in range(1, 9):
        draws = given[f"l8_{level}_draws"]
        by_cell = torch.empty_like(draws)
        by_cell[given[f"l8_{level}_counts"].argsort(stable=True)] = draws
        yield by_cell
    yield given["jitter"]


def test_decoder() -> None:
    given = tensors_of("full/decoder.npz")
    with torch.device("meta"):
        network = SplatDecoder(PUBLIC)
    filled(network, "decoder")
    logits: list[Tensor] = []
    network.octree.register_forward_hook(lambda _, inputs, output: logits.append(output[0]))
    names = {f"gs.blocks.{number}": f"probe_gs_block{number:02d}" for number in range(16)}
    found = probes(network, names)
    draws = draws_by_cell(given)
    points = sample_points(network.octree, given["latent"], 64, lambda *_: next(draws))
    assert torch.equal(points, given["points"])
    worst = max(off_by(x, given[f"l8_{level}_logits"]) for level, x in enumerate(logits, start=1))
    features = network.gs(points[None], given["latent"])[0]
    blocks = {name: off_by(value, given[name]) for name, value in found.items()}
    assert worst <= 5e-5
    assert off_by(features, given["features"]) <= 5e-5
    assert max(blocks.values()) <= 1e-4, blocks
    made = network.gs.gaussians(points, features)
    assert off_by(made.positions, given["xyz"]) <= 1e-5
    assert off_by(made.opacity_logits.sigmoid()[:, None], given["opacity"]) <= 1e-5
    assert off_by(made.scales / given["scaling"], torch.ones(2048, 3)) <= 5e-5
