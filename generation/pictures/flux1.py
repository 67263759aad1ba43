"""Prompt to image: FLUX, its networks from diffusers and transformers."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled
from generation.acceleration.eight_bit import EightBitLinear, Float8Linear, Int8Linear, quantise
from generation.acceleration.graphs import Captured, GraphPool
from generation.acceleration.streams import to_host
from generation.quiet import quiet_libraries
from generation.settings import TextToImageSettings
from protocol.errors import SetupError

_REMEMBERED_PROMPTS = 32
"""Their embeddings take 2 MB each."""

_CLIP_TOKENS = 77


class TextToImage:
    """FLUX.1 (Black Forest Labs 2024).

    Draws what `FluxPipeline` draws, but a prompt's encoding and a picture are one function of
    tensors each, which a CUDA graph can record as a whole.

    Args:
        pipeline: A `FluxPipeline` whose networks are on their device.
        settings: Size, steps, number format and the rest.
        accelerate: Compile the networks and record CUDA graphs, both in the first picture.
        backend: What `torch.compile` compiles with.
    """

    def __init__(
        self,
        pipeline: Any,
        settings: TextToImageSettings,
        *,
        accelerate: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.pipeline = pipeline
        self.settings = settings
        self._device = pipeline.device
        self._dtype = pipeline.transformer.dtype
        self._sigmas = _schedule(pipeline, settings)
        self._embeddings: dict[str, tuple[Tensor, Tensor]] = {}
        self._encode: Any = self._encode_tokens
        self._draw: Any = self._denoise_and_decode
        if accelerate:
            flux = pipeline.transformer
            parts = (
                *flux.transformer_blocks,
                *flux.single_transformer_blocks,
                pipeline.vae.decoder,
            )
            pool = GraphPool()  # Both graphs run in turn, in one thread.
            # Not compiled: transformers asks whether a graph is being recorded, so Dynamo would
            # compile once more while it is, which CUDA does not allow.
            self._encode = Captured("prompt encoding", self._encode, pool=pool)
            compiled = Compiled("FLUX", self._draw, parts, backend=backend)
            self._draw = Captured("FLUX", compiled, pool=pool)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        settings: TextToImageSettings,
        device: str,
        *,
        accelerate: bool = False,
    ) -> "TextToImage":
        """Loads from a folder in the layout of `FluxPipeline`; never from the network's hub id.

        Args:
            folder: Holds `model_index.json` and one folder per network.
            settings: See the class.
            device: Where the networks run, in torch's words.
            accelerate: See the class.

        Raises:
            SetupError: The folder cannot be loaded.
        """
        try:
            pipeline = _load(folder, settings, device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise SetupError(
                f"no FLUX pipeline could be loaded from {folder}: {error}",
                fix="fetch the model again: python -m scripts.fetch_models --preset NAME",
            ) from error
        return cls(pipeline, settings, accelerate=accelerate)

    @torch.no_grad()
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
        generator = torch.Generator("cpu").manual_seed(self.settings.seed if seed is None else seed)
        side = self.settings.size // self.pipeline.vae_scale_factor
        channels = self.pipeline.transformer.config.in_channels // 4
        noise = torch.randn(1, channels, side, side, generator=generator, dtype=self._dtype)
        noise = noise.to(self._device)  # first, since a copy waits for what is under way
        words, pooled = self.embed(prompt)
        pixels = self._draw(noise, words, pooled)
        return Image.fromarray(to_host(pixels))

    @torch.no_grad()
    def embed(self, prompt: str) -> tuple[Tensor, Tensor]:
        """What FLUX sees of a prompt; the most recent prompts are remembered.

        Returns:
            T5's hidden states (1, `max_sequence_length`, 4096) and CLIP's pooled output (1, 768),
            in the networks' number format. Sizes are those of FLUX.1.
        """
        # Every step is whole in itself: another thread may drop all embeddings in between.
        found = self._embeddings.pop(prompt, None)
        if found is None:
            text = self.settings.template.replace("{prompt}", prompt)
            clip = self._tokens(self.pipeline.tokenizer, text, _CLIP_TOKENS)
            t5 = self._tokens(self.pipeline.tokenizer_2, text, self.settings.max_sequence_length)
            found = self._encode(clip, t5)
        self._embeddings[prompt] = found
        for oldest in list(self._embeddings)[:-_REMEMBERED_PROMPTS]:
            self._embeddings.pop(oldest, None)
        return found

    def drop_caches(self) -> None:
        """Forgets the embeddings of prompts, for when memory runs out."""
        self._embeddings.clear()

    def _tokens(self, tokenizer: Any, text: str, count: int) -> Tensor:
        found = tokenizer(
            text, padding="max_length", max_length=count, truncation=True, return_tensors="pt"
        )
        ids: Tensor = found.input_ids.to(self._device)
        return ids

    def _encode_tokens(self, clip: Tensor, t5: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ids (1, 77) and (1, T) to T5's hidden states and CLIP's pooled output."""
        words: Tensor = self.pipeline.text_encoder_2(t5)[0]
        pooled: Tensor = self.pipeline.text_encoder(clip).pooler_output
        return words.to(self._dtype), pooled.to(self._dtype)

    def _denoise_and_decode(self, noise: Tensor, words: Tensor, pooled: Tensor) -> Tensor:
        """Follows the flow from noise to a picture (Liu et al. 2022), by Euler's method.

        Args:
            noise: (1, C, S, S), S a 8th of the picture's side.
            words: See `embed`.
            pooled: See `embed`.

        Returns:
            (8 S, 8 S, 3) uint8 RGB.
        """
        side = noise.shape[-1] // 2
        latents = _pack(noise)
        step = partial(
            self.pipeline.transformer,
            pooled_projections=pooled,
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=places(side, words.device).to(words.dtype),
            guidance=self._guidance(),
            return_dict=False,
        )
        for sigma, following in zip(self._sigmas, self._sigmas[1:], strict=False):
            time = words.new_full((1,), 1000 * sigma) / 1000  # the rounding that FLUX has learnt
            flow = step(hidden_states=latents, timestep=time)[0]
            latents = (latents.float() + (following - sigma) * flow).to(latents.dtype)
        vae = self.pipeline.vae
        latents = _unpack(latents, side) / vae.config.scaling_factor + vae.config.shift_factor
        picture = vae.decode(latents, return_dict=False)[0][0]
        bright = (picture * 0.5 + 0.5).clamp(0, 1).float()
        pixels: Tensor = (bright * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).contiguous()

    def _guidance(self) -> Tensor | None:
        if not self.pipeline.transformer.config.guidance_embeds:
            return None
        return torch.full((1,), self.settings.guidance, device=self._device)


def _schedule(pipeline: Any, settings: TextToImageSettings) -> list[float]:
    """Noise levels from 1 to 0, `steps` + 1 of them, as the pipeline's scheduler shifts them."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler, steps = pipeline.scheduler, settings.steps
    tokens = (settings.size // pipeline.vae_scale_factor // 2) ** 2
    config = scheduler.config
    shift = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
    sigmas: list[float] = scheduler.sigmas.tolist()
    return sigmas


def _pack(latents: Tensor) -> Tensor:
    """(1, C, 2 S, 2 S) to tokens (1, S * S, 4 C), one for each 2 x 2 block."""
    _, channels, height, width = latents.shape
    blocks = latents.view(1, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(1, -1, 4 * channels)


def _unpack(tokens: Tensor, side: int) -> Tensor:
    """Undoes `_pack`."""
    blocks = tokens.view(1, side, side, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * side, 2 * side)


def places(side: int, device: torch.device) -> Tensor:
    """(side * side, 3): nothing, row and column of every image token."""
    line = torch.arange(side, device=device)
    return torch.cartesian_prod(line.new_zeros(1), line, line)


def _load(folder: Path, settings: TextToImageSettings, device: str) -> Any:
    options = {
        "torch_dtype": getattr(torch, settings.dtype),
        "local_files_only": True,
        "use_safetensors": True,
    }
    with quiet_libraries():
        from diffusers import FluxPipeline, FluxTransformer2DModel
        from transformers import T5EncoderModel

        parts: dict[str, Any] = {}
        if settings.eight_bit:
            # One after the other, so that main memory holds only one of them in 16 bits.
            for name, network, layer in (
                ("transformer", FluxTransformer2DModel, Float8Linear),
                ("text_encoder_2", T5EncoderModel, Int8Linear),
            ):
                part = network.from_pretrained(folder / name, **options)
                parts[name] = hold_in_eight_bits(part, layer, device)
        pipeline = FluxPipeline.from_pretrained(folder, **options, **parts)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
    return pipeline


def hold_in_eight_bits(
    network: nn.Module, layer: type[EightBitLinear], device: torch.device | str
) -> nn.Module:
    """Makes a network, or a part of one, small enough for a card of 24 GB, in place.

    Args:
        network: `FluxTransformer2DModel`, `T5EncoderModel` or a block of theirs.
        layer: What takes the place of its large linear layers.
        device: Where everything goes in the end.
    """
    quantise(network, layer, device=device)
    return network.to(device)
