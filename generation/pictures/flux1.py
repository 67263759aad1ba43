"""Prompt to image: FLUX.1, its networks from diffusers and transformers."""

import copy
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled
from generation.acceleration.eight_bit import EightBitLinear, Float8Linear, Int8Linear, quantise
from generation.acceleration.graphs import Captured, GraphPool
from generation.acceleration.streams import to_host, wait_for_stream
from generation.pictures.drawing import Drawing, Schedule, pack, places, unpack
from generation.pictures.prompt_memory import Embedding, PromptMemory
from generation.quiet import quiet_libraries
from generation.settings import TextToImageSettings
from protocol.errors import SetupError

_CLIP_TOKENS = 77

_MOST_SIZES = 8
"""Picture sizes that have CUDA graphs of their own: twice as many as a preset has rungs. The graphs
share their memory, so another one costs little more than its list of kernels."""


class Flux1:
    """FLUX.1 (Black Forest Labs 2024), one denoising step at a time.

    Draws what `FluxPipeline` draws, but the encoding of a prompt, a denoising step and the decoding
    are functions of tensors alone, and CUDA graphs record each of them. The noise levels are among
    these tensors, so one graph per picture size serves every number of steps, and a picture can be
    given up between two steps.

    The graphs share one memory pool: the intermediate values of one lie where another's were. That
    is safe because every graph's results are copied out of the pool before the next graph runs:
    `Captured` clones them, and all calls come from one thread and one stream. Only `remembers` and
    `drop_caches` may be called from any thread.

    Args:
        pipeline: A `FluxPipeline` whose networks are on their device.
        settings: Size, steps, number format and the rest.
        accelerate: Compile the networks and record CUDA graphs, both in the first picture of a
            size.
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
        self._device: torch.device = pipeline.device
        self._dtype: torch.dtype = pipeline.transformer.dtype
        self._schedules: dict[tuple[int, int], Schedule] = {}
        self._prompts = PromptMemory()
        self._encode: Any = self._encode_tokens
        self._step: Any = self._denoise_latents
        self._decode: Any = self._decode_latents
        if accelerate:
            pool = GraphPool()
            # Not compiled: transformers asks whether a graph is being recorded, so Dynamo would
            # compile once more while it is, which CUDA does not allow.
            self._encode = Captured("prompt encoding", self._encode, pool=pool)
            flux = pipeline.transformer
            blocks = (*flux.transformer_blocks, *flux.single_transformer_blocks)
            step = Compiled("FLUX", self._step, blocks, backend=backend)
            self._step = Captured("FLUX", step, pool=pool, limit=_MOST_SIZES)
            decoder = (pipeline.vae.decoder,)
            decode = Compiled("picture decoding", self._decode, decoder, backend=backend)
            self._decode = Captured("picture decoding", decode, pool=pool, limit=_MOST_SIZES)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        settings: TextToImageSettings,
        device: str,
        *,
        accelerate: bool = False,
    ) -> "Flux1":
        """Loads from a local folder in the layout of `FluxPipeline`; never asks the hub.

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

    def __call__(
        self,
        prompt: str,
        seed: int | None = None,
        *,
        steps: int | None = None,
        size: int | None = None,
    ) -> Image.Image:
        """Draws a whole picture: `begin`, every step, `decode`.

        Args:
            prompt: See `begin`.
            seed: See `begin`.
            steps: Denoising steps; the settings' when None.
            size: Side of the picture in pixels; the settings' when None.

        Returns:
            RGB, `size` on each side.
        """
        drawing = self.begin(
            prompt, seed, steps=steps or self.settings.steps, size=size or self.settings.size
        )
        while drawing.index < drawing.steps:
            drawing = self.denoise(drawing)
        return Image.fromarray(self.decode(drawing))

    def remembers(self, prompt: str) -> bool:
        """Whether `begin` would find the prompt's embedding in memory. Callable from any thread."""
        return prompt in self._prompts

    @torch.no_grad()
    def begin(self, prompt: str, seed: int | None, *, steps: int, size: int) -> Drawing:
        """Encodes a prompt and draws the noise; returns once the device has finished both.

        Each text encoder ignores what exceeds its length (CLIP 77 tokens, T5
        `max_sequence_length`).

        Args:
            prompt: Any text.
            seed: Seed of the noise; the settings' seed when None. The noise is drawn on the CPU, so
                the same seed gives the same noise on every device.
            steps: Denoising steps, at least 1.
            size: Side of the picture in pixels, a multiple of 16.

        Raises:
            ValueError: No picture has this number of steps or this size.
        """
        schedule = self._schedule(steps, size)
        generator = torch.Generator("cpu").manual_seed(self.settings.seed if seed is None else seed)
        side = size // self.pipeline.vae_scale_factor
        channels = self.pipeline.transformer.config.in_channels // 4
        noise = torch.randn(1, channels, side, side, generator=generator, dtype=self._dtype)
        # Copied before the encoders start: a copy waits for the kernels that were launched earlier.
        latents = pack(noise).to(self._device)
        words, pooled = self.embed(prompt)
        wait_for_stream(self._device)
        return Drawing(latents, words, pooled, schedule)

    @torch.no_grad()
    def denoise(self, drawing: Drawing) -> Drawing:
        """Takes one Euler step along the flow from noise to a picture (Liu et al. 2022).

        Returns once the device has finished it.

        Raises:
            ValueError: All steps have been taken.
        """
        index = drawing.index
        if index >= drawing.steps:
            raise ValueError(f"all {drawing.steps} denoising steps have been taken")
        latents = self._step(
            drawing.latents,
            drawing.words,
            drawing.pooled,
            drawing.schedule.times[index : index + 1],
            drawing.schedule.deltas[index : index + 1],
        )
        wait_for_stream(self._device)
        return replace(drawing, latents=latents, index=index + 1)

    @torch.no_grad()
    def decode(self, drawing: Drawing) -> NDArray[np.uint8]:
        """Turns finished latents into pixels.

        Returns:
            (size, size, 3) RGB.

        Raises:
            ValueError: Denoising steps are missing.
        """
        if drawing.index < drawing.steps:
            raise ValueError(
                f"only {drawing.index} of {drawing.steps} denoising steps have been taken"
            )
        return to_host(self._decode(drawing.latents))

    @torch.no_grad()
    def embed(self, prompt: str) -> Embedding:
        """Encodes a prompt, or takes the embedding of one that was used recently.

        Returns:
            T5's hidden states (1, `max_sequence_length`, 4096) and CLIP's pooled output (1, 768),
            in the networks' number format. Sizes are those of FLUX.1.
        """
        embedding = self._prompts.get(prompt)
        if embedding is None:
            text = self.settings.template.replace("{prompt}", prompt)
            clip = self._tokens(self.pipeline.tokenizer, text, _CLIP_TOKENS)
            t5 = self._tokens(self.pipeline.tokenizer_2, text, self.settings.max_sequence_length)
            embedding = self._encode(clip, t5)
            self._prompts.add(prompt, embedding)
        return embedding

    def drop_caches(self) -> None:
        """Forgets the embeddings of prompts, to free memory. Callable from any thread."""
        self._prompts.clear()

    def _tokens(self, tokenizer: Any, text: str, count: int) -> Tensor:
        encoding = tokenizer(
            text, padding="max_length", max_length=count, truncation=True, return_tensors="pt"
        )
        ids: Tensor = encoding.input_ids.to(self._device)
        return ids

    def _schedule(self, steps: int, size: int) -> Schedule:
        """Returns the noise levels for a number of steps and a size, computed once."""
        schedule = self._schedules.get((steps, size))
        if schedule is None:
            sigmas = _sigmas(self.pipeline, steps, size)
            # In double precision, then rounded once.
            deltas = [following - sigma for sigma, following in pairwise(sigmas)]
            times = [1000 * sigma for sigma in sigmas[:-1]]
            schedule = Schedule(
                sigmas,
                torch.tensor(times, dtype=self._dtype, device=self._device),
                torch.tensor(deltas, dtype=torch.float32, device=self._device),
            )
            self._schedules[steps, size] = schedule
        return schedule

    def _encode_tokens(self, clip: Tensor, t5: Tensor) -> tuple[Tensor, Tensor]:
        """Maps ids (1, 77) and (1, T) to T5's hidden states and CLIP's pooled output."""
        words: Tensor = self.pipeline.text_encoder_2(t5)[0]
        pooled: Tensor = self.pipeline.text_encoder(clip).pooler_output
        return words.to(self._dtype), pooled.to(self._dtype)

    def _denoise_latents(
        self, latents: Tensor, words: Tensor, pooled: Tensor, time: Tensor, delta: Tensor
    ) -> Tensor:
        """One Euler step; all shapes but those of `time` and `delta`, (1,), are as in `Drawing`."""
        side = math.isqrt(latents.shape[1])
        flow = self.pipeline.transformer(
            hidden_states=latents,
            timestep=time / 1000,  # FLUX has learnt the rounding of this division.
            pooled_projections=pooled,
            encoder_hidden_states=words,
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=places(side, words.device).to(words.dtype),
            guidance=self._guidance(),
            return_dict=False,
        )[0]
        # The product is rounded to the networks' number format, the sum is not.
        change: Tensor = (delta * flow.float()).to(flow.dtype)
        return (latents.float() + change).to(latents.dtype)

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Maps latents as in `Drawing` to (size, size, 3) uint8 RGB."""
        vae = self.pipeline.vae
        blocks = unpack(latents) / vae.config.scaling_factor + vae.config.shift_factor
        picture = vae.decode(blocks, return_dict=False)[0][0]
        bright = (picture * 0.5 + 0.5).clamp(0, 1).float()
        pixels: Tensor = (bright * 255).round().to(torch.uint8)
        return pixels.permute(1, 2, 0).contiguous()

    def _guidance(self) -> Tensor | None:
        if not self.pipeline.transformer.config.guidance_embeds:
            return None
        return torch.full((1,), self.settings.guidance, device=self._device)


def _sigmas(pipeline: Any, steps: int, size: int) -> tuple[float, ...]:
    """Returns `steps` + 1 noise levels from 1 to 0, as the pipeline's scheduler shifts them."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    block = 2 * pipeline.vae_scale_factor
    if steps < 1 or size < block or size % block:
        raise ValueError(
            f"a picture of {size} pixels in {steps} steps cannot be drawn: the size must be a "
            f"multiple of {block}, and there must be at least 1 step"
        )
    scheduler = copy.deepcopy(pipeline.scheduler)  # `set_timesteps` changes it.
    config = scheduler.config
    shift = calculate_shift(
        (size // block) ** 2,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
    return tuple(scheduler.sigmas.tolist())


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
