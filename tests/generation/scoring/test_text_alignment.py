"""The likeness of views and prompt is the validator's, in each precision."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation.scoring.pixels import for_clip
from generation.scoring.text_alignment import (
    ClipNetwork,
    cosines,
    empty_clip,
    published_config,
    text_alignment,
)
from protocol.errors import SetupError
from tests.generation.scoring.golden import GOLDEN, floats, sequence
from tests.generation.scoring.recipes import timm_tower
from tests.generation.scoring.tiny import CLIP

FILE = GOLDEN / "text_alignment/model.safetensors"
EXPECTED = json.loads((GOLDEN / "text_alignment/expected.json").read_text())
TOKENS = json.loads((GOLDEN / "text_alignment/tokens.json").read_text())["rows"]
TOWER = json.loads((GOLDEN / "text_alignment/timm_tower.json").read_text())
CPU = torch.device("cpu")


def network(dtype: torch.dtype, pixels: torch.dtype = torch.float16) -> ClipNetwork:
    model = empty_clip(CLIP)
    model.load_state_dict(load_file(FILE), strict=True, assign=True)
    return ClipNetwork(model.eval().requires_grad_(False), dtype, pixels=pixels)


def padded(ids: list[int]) -> Tensor:
    return torch.tensor([ids + [0] * (77 - len(ids))])


def found_cosines(clip: ClipNetwork, case: str) -> Any:
    views, prompt = case.split("/")
    with torch.no_grad():
        reference = clip.text_features(padded(EXPECTED["prompts"][prompt]))
        return cosines(clip.encode(clip.prepare(sequence(views))), reference).numpy()


@pytest.fixture(scope="module", params=["float32", "half_pixels_float32_model"])
def exact(request: pytest.FixtureRequest) -> tuple[str, ClipNetwork]:
    pixels = torch.float32 if request.param == "float32" else torch.float16
    return request.param, network(torch.float32, pixels)


@pytest.mark.parametrize("case", EXPECTED["variants"]["float32"])
def test_alignment_in_float32(exact: tuple[str, ClipNetwork], case: str) -> None:
    variant, clip = exact
    expected = EXPECTED["variants"][variant][case]
    found = found_cosines(clip, case)
    assert found == pytest.approx(floats(expected["raw_cosines"]), abs=1e-5)
    assert text_alignment(found) == pytest.approx(float(expected["divided_by_0.35"]), abs=3e-5)


@pytest.mark.parametrize(
    ("variant", "dtype", "bound"),
    [
        # For orientation: the reference's pixels came from another bicubic, its processor rounds
        # products in another order, and the tiny network's projection magnifies both.
        ("cpu_autocast_float16", torch.float16, 0.01),
        ("cpu_as_is_bfloat16", torch.bfloat16, 0.06),
    ],
)
def test_alignment_in_half_precision(variant: str, dtype: torch.dtype, bound: float) -> None:
    clip = network(dtype)
    for case, expected in EXPECTED["variants"][variant].items():
        found = found_cosines(clip, case)
        assert found == pytest.approx(floats(expected["raw_cosines"]), abs=bound), case
        assert (found == torch.from_numpy(found).to(dtype).float().numpy()).all(), case


def test_features_before_they_are_scaled() -> None:
    model = network(torch.float32).model
    with np.load(GOLDEN / "text_alignment/features_float32.npz") as expected, torch.no_grad():
        pictures = model.encode_image(for_clip(sequence("orbit"), 224, torch.float32))
        assert pictures.numpy() == pytest.approx(expected["image_features"], abs=1e-5)
        for prompt, ids in EXPECTED["prompts"].items():
            text = model.encode_text(padded(ids)).numpy()
            assert text == pytest.approx(expected[f"text_features_{prompt}"], abs=1e-5)


def test_a_negative_cosine_that_stays_makes_the_alignment_0() -> None:
    values = np.full(16, 0.3, dtype=np.float32)
    values[:3] = -0.1, -0.2, -0.3
    assert text_alignment(values) == 0
    values[1:3] = 0.3
    assert text_alignment(values) == pytest.approx(0.3 / 0.35)


@pytest.fixture(scope="module")
def tower() -> ClipNetwork:
    model = empty_clip(TOWER["constructor"])
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == TOWER["keys"]
    assert len(shapes) == TOWER["tensors"]
    weights, digest = timm_tower(model.state_dict())
    assert digest == TOWER["weights_sha256"]
    logit_scale = {"logit_scale": torch.tensor(0.0)}
    model.load_state_dict(weights | logit_scale, strict=True, assign=True)
    return ClipNetwork(model.eval().requires_grad_(False), torch.float32, pixels=torch.float32)


def test_a_tower_of_the_real_kind(tower: ClipNetwork) -> None:
    assert tower.blocks
    with torch.no_grad():
        text = tower.text_features(padded(EXPECTED["prompts"]["prompt_a"]))
        views = tower.encode(tower.prepare(sequence("orbit")))
    assert text[0].numpy() == pytest.approx(TOWER["text_features_normalised"], abs=1e-5)
    first = TOWER["image_features_normalised_view_00"]
    assert views[0].numpy() == pytest.approx(first, abs=1e-5)
    expected = TOWER["cosines_orbit_prompt_a"]
    assert cosines(views, text).numpy() == pytest.approx(expected, abs=1e-5)


def test_the_published_network_has_its_size() -> None:
    state = empty_clip(published_config()).state_dict()
    assert len(state) == 543
    assert sum(value.numel() for value in state.values()) == 351_772_609
    assert "visual.head.mlp.fc1.bias" in state
    assert "visual.head.mlp.fc2.bias" not in state


@pytest.mark.parametrize("row", TOKENS, ids=lambda row: row["prompt"][:20] or "empty")
def test_tokens(tower: ClipNetwork, row: dict[str, Any]) -> None:
    found = tower.tokens(row["prompt"])
    assert (list(found.shape), str(found.dtype)) == ([1, 77], "torch.int64")
    assert found.tolist() == padded(row["ids"]).tolist()


def test_words_of_prompts_are_not_kept_for_ever(
    tower: ClipNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.scoring.text_alignment._MOST_WORDS", 20)
    before = tower.tokens("a red chair").tolist()
    for number in range(100):
        tower.tokens(f"thing{'x' * number}")
        assert len(tower._tokenizer.cache) < 30
    assert tower.tokens("a red chair").tolist() == before


@pytest.mark.parametrize(
    ("key", "problem"), [("ln_final.bias", "1 missing: ln_final.bias"), ("other", "1 surplus")]
)
def test_a_file_of_another_network_is_refused(tmp_path: Any, key: str, problem: str) -> None:
    weights = load_file(FILE)
    if weights.pop(key, None) is None:
        weights[key] = torch.zeros(1)
    file = tmp_path / "open_clip_model.safetensors"
    save_file(weights, file)
    with pytest.raises(SetupError, match=problem):
        ClipNetwork.load(file, CLIP, CPU, torch.float32)
