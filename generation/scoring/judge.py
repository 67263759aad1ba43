"""What the validator's networks say of pictures, as one vector that stays on the device."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from generation.scoring.image_alignment import Llm2Clip
from generation.scoring.pixels import for_quality
from generation.scoring.quality import QualityNetwork
from generation.scoring.similarity import Lpips, Ssim
from generation.scoring.text_alignment import ClipNetwork, cosines


@dataclass(frozen=True, eq=False)
class ValidatorNetworks:
    """The networks that score, on one device.

    Attributes:
        quality: How good a view is.
        clip: What a view has in common with a prompt.
        lpips: How far two views are apart.
        llm2clip: What a view has in common with the picture of an image task; `clip` stands in
            when None.
    """

    quality: QualityNetwork
    clip: ClipNetwork
    lpips: Lpips
    llm2clip: Llm2Clip | None = None


class Eye(Protocol):
    """A network that turns pictures into unit vectors."""

    def prepare(self, pictures: Tensor) -> Tensor:
        """Maps (B, H, W, 3) uint8 to what the network takes."""

    def encode(self, prepared: Tensor) -> Tensor:
        """Maps what `prepare` returns to unit vectors (B, D)."""


class Judge:
    """All networks in one function of tensors, which a CUDA graph can record.

    Args:
        networks: Which.
        eye: The one of them that compares pictures with the task.
        ssim: Likeness of neighbouring views.
        dtype: What the quality network multiplies in. Sums, its head, SSIM and LPIPS are float32
            in any case.
    """

    def __init__(
        self, networks: ValidatorNetworks, eye: Eye, ssim: Ssim, dtype: torch.dtype
    ) -> None:
        self._quality, self._lpips = networks.quality, networks.lpips
        self._eye, self._ssim = eye, ssim
        self._dtype = dtype

    def __call__(self, pictures: Tensor, reference: Tensor | None = None) -> Tensor:
        """Judges the views of an object, or one picture, or encodes what they are compared with.

        Args:
            pictures: (V, H, W, 3) uint8; without a reference, what `Eye.prepare` returns.
            reference: (1, D), the unit vector of the prompt or of its picture.

        Returns:
            float32: qualities and cosines, V of each, and with more than one view V likenesses and
            V distances of neighbours, one after the other. Without a reference unit vectors (V, D).
        """
        if reference is None:
            return self._eye.encode(pictures)
        seen = self._eye.encode(self._eye.prepare(pictures))
        numbers = [self.qualities(pictures), cosines(seen, reference)]
        if len(pictures) > 1:
            numbers += [self._ssim(pictures), self._lpips(pictures)]
        return torch.cat(numbers)

    def qualities(self, pictures: Tensor) -> Tensor:
        """Maps (V, H, W, 3) uint8 to (V,) float32, 0..1."""
        prepared = for_quality(pictures, self._quality.image_size)
        casts = self._dtype != torch.float32
        with torch.autocast(pictures.device.type, self._dtype, enabled=casts):
            features = self._quality.features(prepared)
        return self._quality.logits(features.float()).sigmoid()
