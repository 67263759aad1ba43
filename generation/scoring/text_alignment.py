"""Likeness of a view and a prompt as a validator measures it: CLIP, convnext_large_d."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.scoring.checkpoints import fill, read_weights
from generation.scoring.pixels import for_clip
from generation.scoring.statistics import mean, without_outliers

CLIP_NAME = "convnext_large_d"
CLIP_SIZE = 224
"""Side of the pictures; the network's own is 256."""
DIVISOR = 0.35
"""A cosine of this much counts as an alignment of 1."""

_MOST_WORDS = 20_000
"""The tokeniser remembers every word that it has met; it starts over when there are more."""


def text_alignment(cosines: NDArray[np.float32]) -> float:
    """Returns the alignment of a text task, of the cosines of all views and the prompt.

    The rule for outliers comes before negative cosines are set to 0; one that it leaves makes the
    alignment 0.
    """
    kept = without_outliers(cosines)
    return mean(kept.clip(0, 1), "geometric_mean") / DIVISOR


class ClipNetwork:
    """CLIP (Radford et al. 2021) as the validator runs it.

    The validator keeps float32 weights and lets autocast compute products in float16. Here the
    weights of those products in the vision tower are held in float16, which gives the same
    products in half of the memory. The text tower runs once a prompt and stays float32.

    Args:
        model: An open_clip `CLIP` with its weights, on its device.
        dtype: What products are computed in; float32 leaves autocast off.
        pixels: What pixels are rounded to; the validator's is float16.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, *, pixels: torch.dtype = torch.float16
    ) -> None:
        from open_clip import get_tokenizer
        from open_clip.model import convert_weights_to_lp

        self.model = model
        self._dtype, self._pixels = dtype, pixels
        self._device: torch.device = model.logit_scale.device
        self._tokenizer: Any = get_tokenizer(CLIP_NAME)
        self._tokens_of_use = dict(self._tokenizer.cache)
        if dtype != torch.float32:
            convert_weights_to_lp(model.visual, dtype=dtype)
        # What convolutions on a GPU, and ConvNeXt's layer norms, want.
        model.visual.to(memory_format=torch.channels_last)
        for block in self.blocks:
            # It does nothing outside training, but its rate differs from block to block, and each
            # would be compiled again.
            block.drop_path = nn.Identity()

    @classmethod
    def load(
        cls, file: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype
    ) -> "ClipNetwork":
        """Loads a safetensors file; every key must be there, and no other.

        Args:
            file: open_clip's `open_clip_model.safetensors`.
            config: Arguments of open_clip's `CLIP`; see `published_config`.
            device: Where the network runs.
            dtype: See the class.

        Raises:
            SetupError: The file is damaged or of another network.
        """
        model = empty_clip(config)
        fill(model, file, read_weights(file))
        return cls(model.to(device), dtype)

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The ConvNeXt blocks, nearly all of the work; none if the tower is of another kind."""
        trunk = getattr(self.model.visual, "trunk", None)
        return () if trunk is None else tuple(b for stage in trunk.stages for b in stage.blocks)

    def prepare(self, pictures: Tensor) -> Tensor:
        """Maps (B, H, W, 3) uint8 to what `encode` takes."""
        prepared = for_clip(pictures, CLIP_SIZE, self._pixels)
        if not self._casts:
            return prepared.float()
        return prepared.contiguous(memory_format=torch.channels_last)

    def encode(self, prepared: Tensor) -> Tensor:
        """Maps prepared pictures to unit vectors (B, D) in the type of the products."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._casts):
            return unit(self.model.encode_image(prepared))

    def text_features(self, tokens: Tensor) -> Tensor:
        """Maps token ids (B, 77) to unit vectors (B, D) in the type of the products."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._casts):
            return unit(self.model.encode_text(tokens))

    def tokens(self, prompt: str) -> Tensor:
        """Returns the token ids of a prompt (1, 77), on the device; what exceeds them is cut."""
        if len(self._tokenizer.cache) > _MOST_WORDS:
            self._tokenizer.cache = dict(self._tokens_of_use)
        ids: Tensor = self._tokenizer(prompt)
        return ids.to(self._device)

    @property
    def _casts(self) -> bool:
        return self._dtype != torch.float32


def published_config() -> Mapping[str, Any]:
    """Returns the shape of convnext_large_d, as open_clip describes it."""
    from open_clip import get_model_config

    config: dict[str, Any] = get_model_config(CLIP_NAME)
    return config


def empty_clip(config: Mapping[str, Any]) -> Any:
    """Builds a CLIP whose parameters are on meta."""
    from open_clip.model import CLIP

    with torch.device("meta"):
        model = CLIP(**config)
    # The only buffer that no checkpoint holds: what a token may look at.
    length = model.context_length
    model.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    return model


def unit(features: Tensor) -> Tensor:
    """Scales vectors (B, D) to length 1, rounded once to their type."""
    wide = features.float()
    scaled: Tensor = wide / wide.norm(dim=-1, keepdim=True)
    return scaled.to(features.dtype)


def cosines(features: Tensor, reference: Tensor) -> Tensor:
    """Maps unit vectors (B, D) and (1, D) to cosines (B,), float32 but rounded to their type."""
    products: Tensor = (features @ reference.T).float()
    return products[:, 0]
