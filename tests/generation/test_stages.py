"""Stages as a preset asks for them, with the shipped networks."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.pictures.flux1 import Flux1
from generation.pictures.framing import composite_on_grey
from generation.presets import preset
from generation.stages import Networks, assemble, load_networks
from generation.weights.store import ModelPaths

SETTINGS = preset("embedded")


@pytest.fixture(scope="module")
def networks(embedded_paths: ModelPaths) -> Networks:
    return load_networks(SETTINGS, None, lambda what: None)


def test_accelerated_stages_make_the_same(networks: Networks) -> None:
    torch._dynamo.reset()
    plain = assemble(SETTINGS, networks)
    picture = plain.text_to_image("a red mug", 0)
    on_grey = composite_on_grey(plain.background(picture))
    code = plain.scene_code(on_grey)
    fast_settings = SETTINGS.model_copy(update={"accelerate": True})
    draw = Flux1(
        networks.text_to_image.pipeline, SETTINGS.text_to_image, accelerate=True, backend="eager"
    )
    fast = assemble(fast_settings, replace(networks, text_to_image=draw), backend="eager")
    drawn = np.asarray(fast.text_to_image("a red mug", 0), dtype=int)
    assert np.abs(drawn - np.asarray(picture, dtype=int)).max() <= 1
    torch.testing.assert_close(fast.scene_code(on_grey), code)
    assert all(layer._compiled_call_impl is not None for layer in networks.triposr.layers)


def test_dropping_caches_forgets_prompts(networks: Networks) -> None:
    stages = assemble(SETTINGS, networks)
    before = networks.text_to_image.embed("a red mug")
    assert networks.text_to_image.embed("a red mug") is before
    stages.drop_caches()
    assert networks.text_to_image.embed("a red mug") is not before


def test_compiled_code_is_kept_beside_the_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    load_networks(SETTINGS.model_copy(update={"accelerate": True}), None, lambda what: None)
    folder = tmp_path / "splat-miner" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.is_dir()
