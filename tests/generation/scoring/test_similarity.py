"""SSIM and LPIPS of neighbouring views are the validator's."""

import hashlib
import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from generation.scoring.similarity import Lpips, Ssim, pair_mean
from protocol.errors import SetupError
from tests.generation.scoring.golden import GOLDEN, SEQUENCES, floats, sequence
from tests.generation.scoring.recipes import alexnet_features, write_alexnet

EXPECTED = json.loads((GOLDEN / "similarity/expected.json").read_text())


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    return Lpips.load(write_alexnet(tmp_path_factory.mktemp("alexnet")))


@pytest.mark.parametrize("name", SEQUENCES)
def test_ssim_of_every_pair(name: str) -> None:
    expected = EXPECTED["sequences"][name]["ssim"]
    found = Ssim()(sequence(name)).numpy()
    assert found.astype(np.float64) == pytest.approx(floats(expected["pairs"]), abs=1e-6)
    assert pair_mean(found) == pytest.approx(float(expected["score"]), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", SEQUENCES)
def test_lpips_of_every_pair(name: str, lpips: Lpips) -> None:
    expected = EXPECTED["sequences"][name]["lpips_recipe_weights"]
    with torch.no_grad():
        found = lpips(sequence(name)).numpy()
    assert found.astype(np.float64) == pytest.approx(floats(expected["pairs"]), abs=1e-6)
    assert 1 - pair_mean(found) == pytest.approx(float(expected["score"]), abs=1e-5, nan_ok=True)


def test_ssim_is_that_of_torchmetrics() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    random = torch.Generator().manual_seed(0)
    views = torch.randint(0, 256, (5, 37, 61, 3), generator=random, dtype=torch.uint8)
    pictures = views.permute(0, 3, 1, 2).float() / 255
    expected = ssim(pictures, pictures.roll(-1, 0), data_range=1.0, reduction="none")
    assert isinstance(expected, torch.Tensor)
    assert Ssim()(views).numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_the_recipe_is_the_one_of_the_reference_data() -> None:
    digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in alexnet_features().values()))
    assert digest.hexdigest() in json.dumps(EXPECTED)


def test_nothing_grows_with_the_number_of_clouds(lpips: Lpips) -> None:
    def size() -> int:
        tensors = {id(v): v.numel() for v in lpips.state_dict().values()}
        attributes = [vars(module) for module in lpips.modules()]
        return int(sum(tensors.values())) + len(str(attributes))

    views = sequence("orbit")
    with torch.no_grad():
        lpips(views[:2])
        before = size()
        for _ in range(3):
            lpips(views[:2])
    assert size() == before


def test_loading_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    Lpips.load(write_alexnet(tmp_path))


@pytest.mark.parametrize(
    ("key", "problem"),
    [("features.3.bias", "1 missing: features.3.bias"), ("features.3.other", "1 surplus")],
)
def test_a_file_of_another_network_is_refused(tmp_path: Path, key: str, problem: str) -> None:
    weights = alexnet_features()
    if weights.pop(key, None) is None:
        weights[key] = torch.zeros(1)
    file = tmp_path / "alexnet.safetensors"
    save_file(weights, file)
    with pytest.raises(SetupError, match=problem):
        Lpips.load(file)
