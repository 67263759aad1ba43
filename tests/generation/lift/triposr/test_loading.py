import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from generation.lift.triposr import CheckpointError, TripoSR, vit
from tests.support.tiny_networks import SIZES


def test_saved_models_load_again(tiny: TripoSR, tmp_path: Path, image: NDArray[np.float32]) -> None:
    tiny.save_pretrained(tmp_path / "new" / "folder")
    again = TripoSR.from_pretrained(tmp_path / "new" / "folder", query_chunk=77)
    assert again.config == tiny.config
    assert again.query_chunk == 77
    state = tiny.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    assert torch.equal(again.scene_codes(image), tiny.scene_codes(image))


def test_loaded_models_are_for_inference(tiny: TripoSR) -> None:
    assert not tiny.training
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_dtype_holds_for_every_weight(golden: Path) -> None:
    model = TripoSR.from_pretrained(golden / "tiny", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_are_resampled_at_loading_and_not_in_a_pass(
    golden: Path, image: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    model = TripoSR.from_pretrained(golden / "tiny", dtype=dtype)
    embeddings = model.image_tokenizer.model.embeddings
    embeddings.fitted_grid = None
    resampled_in_the_pass = model.scene_codes(image)
    model.fit_positions()
    calls: list[object] = []
    monkeypatch.setattr(vit, "interpolate_positions", lambda *args: calls.append(args))
    assert torch.equal(model.scene_codes(image), resampled_in_the_pass)
    assert calls == []


def test_images_of_another_size_get_positions_of_their_own(tiny: TripoSR) -> None:
    patch = tiny.config.vit.patch_size
    for rows, columns in ((3, 5), (5, 3)):
        tokens = tiny.image_tokenizer(torch.zeros(1, 3, rows * patch, columns * patch))
        assert tokens.shape[1] == 1 + rows * columns


@pytest.mark.parametrize("vit_size", [32, 64])
def test_resampled_positions_are_no_weights(vit_size: int) -> None:
    config = replace(SIZES.triposr, vit=replace(SIZES.triposr.vit, image_size=vit_size))
    model = TripoSR(config)
    state, weights = set(model.state_dict()), len(list(model.parameters()))
    model.fit_positions()
    assert set(model.state_dict()) == state
    assert len(list(model.parameters())) == weights


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty download cache of the hub's library, without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_hub_id_is_taken_from_the_download_cache(
    golden: Path, hub_cache: Path, revision: str | None, image: NDArray[np.float32]
) -> None:
    repo = hub_cache / "models--someone--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(golden / "tiny", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / (revision or "main")).write_text(commit)
    model = TripoSR.from_pretrained("someone/tiny", revision=revision)
    assert model.scene_codes(image).shape == (3, 8, 16, 16)


def test_a_hub_id_that_cannot_be_had(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"someone/tiny: config\.yaml cannot be had"):
        TripoSR.from_pretrained("someone/tiny")


@pytest.mark.parametrize("name", ["some one/tiny", "a/b/c", "tiny"])
def test_what_is_no_hub_id_never_reaches_the_hub(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a hub id"):
        TripoSR.from_pretrained(name)
