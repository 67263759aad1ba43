"""The full-size model, built without memory for weights, against the public files' headers."""

import json
from pathlib import Path

import pytest
import torch

from generation.lift.triposplat import PUBLIC, TripoSplat, TripoSplatConfig
from generation.lift.triposplat.model import PUBLIC_DECODER_NAME, PUBLIC_FLOW_NAME


@pytest.fixture(scope="module")
def full_size() -> TripoSplat:
    with torch.device("meta"):
        return TripoSplat()


@pytest.mark.parametrize(
    ("network", "name", "count", "values"),
    [
        ("flow", PUBLIC_FLOW_NAME, 559, 370_526_101),
        ("decoder", PUBLIC_DECODER_NAME, 388, 288_053_833),
    ],
)
def test_keys_order_and_shapes_are_the_public_files(
    full_size: TripoSplat, golden: Path, network: str, name: str, count: int, values: int
) -> None:
    tensors = json.loads((golden / "manifest.json").read_text())[name]["tensors"]
    state = full_size.get_submodule(network).state_dict()
    built = {key: list(value.shape) for key, value in state.items()}
    assert list(built.items()) == [(key, shape) for key, (_, shape) in tensors.items()]
    assert len(built) == count
    assert sum(value.numel() for value in state.values()) == values


def test_the_default_config_is_the_public_one(golden: Path) -> None:
    assert TripoSplatConfig.load(golden / "config.json") == PUBLIC


def test_a_model_built_without_memory_still_knows_the_places_of_its_tokens(
    full_size: TripoSplat,
) -> None:
    assert full_size.flow.positions.device.type == "cpu"
    assert full_size.flow.positions.shape == (8192, 1024)
