"""Likeness of a view and the picture of an image task.

The validator's network is LLM2CLIP, whose repository brings its own code. It runs only where the
operator asks for it; otherwise the picture features of the network for text stand in.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from generation.quiet import quiet_libraries
from generation.scoring.pixels import for_clip
from generation.scoring.statistics import mean, without_outliers
from generation.scoring.text_alignment import unit
from protocol.errors import SetupError
from protocol.images import decode_image

LLM2CLIP_SIZE = 336
"""Side of LLM2CLIP's pictures."""


def image_alignment(cosines: NDArray[np.float32]) -> float:
    """Returns the alignment of an image task, of the cosines of all views and the picture.

    A negative cosine that the rule for outliers leaves makes the alignment NaN. Nothing is divided.
    """
    return mean(without_outliers(np.sort(cosines)), "geometric_mean")


def prompt_picture(image: bytes) -> NDArray[np.uint8]:
    """Returns the picture of an image task as the validator sees it: (H, W, 3), on white.

    Raises:
        TaskError: It cannot be decoded.
    """
    picture = decode_image(image)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.array(picture.convert("RGB"))


class Llm2Clip:
    """The picture tower of LLM2CLIP (Huang et al. 2024), run by the code of its repository.

    Args:
        model: Has `get_image_features`; on its device.
        dtype: Of the weights and the computation.
        pixels: What pixels are rounded to; the validator's is float16.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, *, pixels: torch.dtype = torch.float16
    ) -> None:
        self._model = model
        self._dtype, self._pixels = dtype, pixels

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> "Llm2Clip":
        """Loads a folder of transformers' layout, and RUNS the code in it.

        Args:
            folder: Files that were compared with the lock file.
            device: Where the network runs.
            dtype: See the class.

        Raises:
            SetupError: The folder cannot be loaded with the installed transformers.
        """
        try:
            with quiet_libraries():
                from transformers import AutoModel

                model = AutoModel.from_pretrained(
                    folder, trust_remote_code=True, local_files_only=True, dtype=dtype
                )
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # The code is another party's: anything can happen.
            raise SetupError(
                f"LLM2CLIP cannot be loaded from {folder}: {type(error).__name__}: {error}",
                fix="--scoring.image_alignment convnext, the stand-in",
            ) from error
        return cls(model.to(device).eval().requires_grad_(False), dtype)

    def prepare(self, pictures: Tensor) -> Tensor:
        """Maps (B, H, W, 3) uint8 to what `encode` takes."""
        return for_clip(pictures, LLM2CLIP_SIZE, self._pixels).to(self._dtype)

    def encode(self, prepared: Tensor) -> Tensor:
        """Maps prepared pictures to unit vectors (B, D) in the network's type."""
        features: Tensor = self._model.get_image_features(prepared)
        return unit(features)
