import json
from pathlib import Path

import pytest
import torch

from generation.lift.triposr import TripoSR, TripoSRConfig


@pytest.fixture(scope="module")
def full_size() -> TripoSR:
    with torch.device("meta"):
        return TripoSR()


def test_keys_order_and_shapes_are_the_public_checkpoints(full_size: TripoSR, golden: Path) -> None:
    manifest = json.loads((golden / "manifest.json").read_text())
    built = {key: list(value.shape) for key, value in full_size.state_dict().items()}
    assert list(built.items()) == list(manifest.items())


def test_counts_per_module(full_size: TripoSR, golden: Path) -> None:
    summary = json.loads((golden / "manifest_summary.json").read_text())
    state = full_size.state_dict()
    assert len(state) == summary["tensors"] == 549
    assert sum(value.numel() for value in state.values()) == 419_275_628
    for name, count in summary["per_module"].items():
        assert sum(p.numel() for p in full_size.get_submodule(name).parameters()) == count


def test_default_config_is_the_public_one(golden: Path) -> None:
    assert TripoSRConfig.load(golden / "config.yaml") == TripoSRConfig()
    assert TripoSRConfig.load(golden / "config.yaml", golden / "dino_config.json") == (
        TripoSRConfig()
    )
