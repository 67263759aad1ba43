"""Prompt to image: FLUX through diffusers."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from generation.presets import TextToImageSettings
from generation.quiet import quiet_libraries
from protocol.errors import SetupError


class TextToImage:
    """FLUX.1 (Black Forest Labs 2024), loaded from a folder in the layout of `FluxPipeline`.

    Args:
        folder: Holds `model_index.json` and one folder per network; never the network's hub id.
        settings: Size, steps, number format and the rest.
        device: Where the networks run, in torch's words.

    Raises:
        SetupError: The folder cannot be loaded.
    """

    def __init__(self, folder: Path, settings: TextToImageSettings, device: str) -> None:
        self.settings = settings
        self._pipeline = _load(folder, settings, device)

    def __call__(self, prompt: str, seed: int | None = None) -> Image.Image:
        """Draws an image of the prompt.

        What exceeds the text encoders' lengths (CLIP 77 tokens, T5 `max_sequence_length`) is left
        out by each of them.

        Args:
            prompt: Any text.
            seed: Seed of the noise; the settings' seed when None. The noise is drawn on the CPU, so
                that the same seed means the same noise on every device.

        Returns:
            RGB, `settings.size` on each side.
        """
        settings = self.settings
        generator = torch.Generator("cpu").manual_seed(settings.seed if seed is None else seed)
        result = self._pipeline(
            prompt=settings.template.replace("{prompt}", prompt),
            height=settings.size,
            width=settings.size,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            max_sequence_length=settings.max_sequence_length,
            generator=generator,
        )
        image: Image.Image = result.images[0]
        return image.convert("RGB")


def _load(folder: Path, settings: TextToImageSettings, device: str) -> Any:
    with quiet_libraries():
        from diffusers import FluxPipeline

        try:
            pipeline = FluxPipeline.from_pretrained(
                folder,
                torch_dtype=getattr(torch, settings.dtype),
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise SetupError(
                f"no FLUX pipeline could be loaded from {folder}: {error}",
                fix="fetch the model again: python -m scripts.fetch_models --preset NAME",
            ) from error
        pipeline.set_progress_bar_config(disable=True)
        if settings.offload:
            _offload(pipeline, torch.device(device))
        else:
            pipeline.to(device)
    return pipeline


def _offload(pipeline: Any, device: torch.device) -> None:
    if device.type != "cuda":
        raise SetupError(
            f"text_to_image.offload needs a CUDA device, the preset runs on {device}",
            fix="set device to cuda, or offload to false",
        )
    # Whole networks would have to be copied back each time; layers have a copy that stays in
    # page-locked memory and are brought while their predecessors compute.
    pipeline.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
