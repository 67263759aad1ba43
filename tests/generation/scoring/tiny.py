"""The reference data's tiny networks, and a models folder with such."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from generation.presets import preset
from generation.scoring.quality import QualityConfig
from generation.scoring.validator import Shapes
from generation.settings import GenerationSettings
from generation.weights.sources import HubModel, ReleaseModel
from generation.weights.store import ModelStore
from tests.generation.scoring.golden import GOLDEN
from tests.generation.scoring.recipes import write_alexnet

QUALITY = QualityConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=70
)
CLIP = json.loads((GOLDEN / "text_alignment/config.json").read_text())["constructor"]
QUALITY_FILE = GOLDEN / "quality/model.safetensors"
CLIP_FILE = GOLDEN / "text_alignment/model.safetensors"

_TOKENS = 49408

SHAPES = Shapes(
    QUALITY, CLIP | {"text_cfg": CLIP["text_cfg"] | {"vocab_size": _TOKENS}}, view_size=64
)
"""What `write_models` writes: it knows all tokens, so that any prompt can be scored."""


def write_models(folder: Path) -> GenerationSettings:
    """Fills a models folder; returns the preset `embedded` with a scorer that loads it."""
    quality = HubModel(repo="a/quality", files=("*",), licence="MIT")
    text = HubModel(repo="a/clip", files=("*",), licence="MIT")
    lpips = ReleaseModel(
        name="alexnet", url="http://a/alexnet.safetensors", md5="0", licence="MIT", page=""
    )
    store = ModelStore(folder)
    for model in (quality, text, lpips):
        store.folder(model).mkdir()
    generator = torch.Generator().manual_seed(0)
    weights = load_file(CLIP_FILE)
    weights["token_embedding.weight"] = torch.randn(_TOKENS, 24, generator=generator)
    save_file(load_file(QUALITY_FILE), store.folder(quality) / "quality_scorer.safetensors")
    save_file(weights, store.folder(text) / "open_clip_model.safetensors")
    write_alexnet(store.folder(lpips))
    store.record(quality, "c0ffee", ["quality_scorer.safetensors"])
    store.record(text, "c0ffee", ["open_clip_model.safetensors"])
    store.record(lpips, lpips.url, ["alexnet.safetensors"])
    settings = preset("embedded")
    models = {"quality_model": quality, "text_model": text, "lpips_model": lpips}
    scoring = settings.scoring.model_copy(update={"scorer": "validator", **models})
    return settings.model_copy(update={"scoring": scoring})
