"""The quality network computes what the validator's computes, from a file that must fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from generation.scoring.pixels import for_quality
from generation.scoring.quality import QualityConfig, QualityNetwork
from protocol.errors import SetupError
from tests.generation.scoring.golden import GOLDEN, pictures, sequence
from tests.generation.scoring.tiny import QUALITY

FILE = GOLDEN / "quality/model.safetensors"
EXPECTED = json.loads((GOLDEN / "quality/expected.json").read_text())
PICTURES = tuple(f"quality/image_{index}.png" for index in range(4))


@pytest.fixture(scope="module")
def network() -> QualityNetwork:
    return QualityNetwork.load(FILE, QUALITY)


@pytest.mark.parametrize("size", [70, 518])
def test_features_logits_and_scores(network: QualityNetwork, size: int) -> None:
    prepared = for_quality(pictures(*PICTURES), size)
    with torch.no_grad():
        features = network.features(prepared)
        logits = network.logits(features)
    with np.load(GOLDEN / f"quality/expected_{size}.npz") as expected:
        assert features.numpy() == pytest.approx(expected["cls_features"], abs=1e-5)
        assert logits.numpy() == pytest.approx(expected["logits"].ravel(), abs=1e-5)
    summary = EXPECTED[f"size_{size}"]
    assert logits.numpy() == pytest.approx(summary["logits"], abs=1e-5)
    assert logits.sigmoid().numpy() == pytest.approx(summary["scores"], abs=1e-5)
    assert float(logits.sigmoid().mean()) == pytest.approx(summary["mean_score"], abs=1e-5)


def test_sixteen_views_at_once(network: QualityNetwork) -> None:
    with torch.no_grad():
        features = network.features(for_quality(sequence("orbit"), 70))
        scores = network.logits(features).sigmoid()
    expected = EXPECTED["orbit_views_size_70"]
    assert scores.numpy() == pytest.approx(expected["scores"], abs=1e-5)
    assert float(scores.mean()) == pytest.approx(expected["mean_score"], abs=1e-5)


def test_the_validators_network_has_the_keys_and_shapes_of_the_manifest() -> None:
    manifest = json.loads((GOLDEN / "quality/manifest.json").read_text())
    summary = json.loads((GOLDEN / "quality/manifest_config.json").read_text())
    with torch.device("meta"):
        network = QualityNetwork(QualityConfig())
    found = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert found == manifest
    assert len(found) == summary["tensors"] == 227
    assert sum(p.numel() for p in network.parameters()) == summary["parameters"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda weights: weights.pop("score_head.bias"), "1 missing: score_head.bias"),
        (lambda weights: weights.update(other=torch.zeros(1)), "1 surplus: other"),
        (
            lambda weights: weights.update({"score_head.bias": torch.zeros(2)}),
            r"1 misshapen: score_head.bias \(found \(2,\), expected \(1,\)\)",
        ),
    ],
    ids=["missing", "surplus", "misshapen"],
)
def test_a_file_of_another_network_is_refused(tmp_path: Path, change, problem: str) -> None:  # type: ignore[no-untyped-def]
    weights = load_file(FILE)
    change(weights)
    file = tmp_path / "model.safetensors"
    save_file(weights, file)
    with pytest.raises(SetupError, match=problem):
        QualityNetwork.load(file, QUALITY)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(FILE.read_bytes()[:5000])
    with pytest.raises(SetupError, match="damaged or truncated"):
        QualityNetwork.load(file, QUALITY)
