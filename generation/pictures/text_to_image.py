"""Prompt to pictures, what all models share: noise, denoising steps, pixels, the fast path."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from generation.acceleration.compiling import Compiled
from generation.acceleration.eight_bit import NarrowLinear, quantise
from generation.acceleration.graphs import Captured, GraphPool
from generation.acceleration.streams import to_host, wait_for_stream
from generation.pictures.drawing import Drawing, Schedule
from generation.pictures.prompt_memory import Embedding, PromptMemory
from generation.quiet import quiet_libraries
from generation.settings import TextToImageSettings
from generation.weights.store import FETCH_AGAIN
from protocol.errors import SetupError

_MOST_SHAPES = 24
"""Picture sizes x numbers of pictures that have CUDA graphs of their own. The graphs share their
memory, so another one costs little more than its list of kernels."""


class TextToImage(ABC):
    """A model of diffusers', several pictures of a prompt at a time, one denoising step at a time.

    Draws what the model's own pipeline draws, but the encoding of a prompt, a denoising step and
    the decoding are functions of tensors alone, and CUDA graphs record each of them. The noise
    levels are among these tensors, so one graph per picture size and number of pictures serves
    every number of steps, and pictures can be given up between two steps.

    The graphs share one memory pool: the intermediate values of one lie where another's were. That
    is safe because every graph's results are copied out of the pool before the next graph runs:
    `Captured` clones them, and all calls come from one thread and one stream. Only `remembers` and
    `drop_caches` may be called from any thread.

    Args:
        pipeline: A pipeline of diffusers' whose networks are on their device.
        settings: Size, steps, number format and the rest.
        accelerate: Compile the networks and record CUDA graphs, both with the first pictures of a
            size and number.
        backend: What `torch.compile` compiles with.
    """

    NAME: ClassVar[str]
    """What messages call the model."""
    SEQUENCE_LENGTH: ClassVar[int]
    """Tokens of a prompt that the model was trained with."""
    LARGEST_SIZE: ClassVar[int] = 2048
    """Most pixels per side of a picture."""

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
            encode = Compiled(
                "prompt encoding",
                self._encode,
                self._encoder_blocks(),
                backend=backend,
                rounds_as_eager=True,
            )
            self._encode = Captured("prompt encoding", encode, pool=pool)
            flux = pipeline.transformer
            blocks = (*flux.transformer_blocks, *flux.single_transformer_blocks)
            step = Compiled("FLUX", self._step, blocks, backend=backend)
            self._step = Captured("FLUX", step, pool=pool, limit=_MOST_SHAPES)
            decoder = (pipeline.vae.decoder,)
            decode = Compiled("picture decoding", self._decode, decoder, backend=backend)
            self._decode = Captured("picture decoding", decode, pool=pool, limit=_MOST_SHAPES)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        settings: TextToImageSettings,
        device: str,
        *,
        accelerate: bool = False,
    ) -> Self:
        """Loads from a local folder in the layout of the model's pipeline; never asks the hub.

        Args:
            folder: Holds `model_index.json` and one folder per network.
            settings: See the class.
            device: Where the networks run, in torch's words.
            accelerate: See the class.

        Raises:
            SetupError: The model does not draw pictures of this size, or the folder cannot be
                loaded.
        """
        if settings.size > cls.LARGEST_SIZE:
            raise SetupError(
                f"{cls.NAME} draws pictures of at most {cls.LARGEST_SIZE} pixels a side, but "
                f"text_to_image.size is {settings.size}",
                fix=f"--text_to_image.size {cls.LARGEST_SIZE}",
            )
        options = {
            "torch_dtype": getattr(torch, settings.dtype),
            "local_files_only": True,
            "use_safetensors": True,
        }
        try:
            with quiet_libraries():
                pipeline = cls._load(folder, settings, device, options)
                pipeline.set_progress_bar_config(disable=True)
                pipeline.to(device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise SetupError(
                f"no {cls.NAME} pipeline could be loaded from {folder}: {error}",
                fix=FETCH_AGAIN,
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
            prompt, (seed,), steps=steps or self.settings.steps, size=size or self.settings.size
        )
        while drawing.index < drawing.steps:
            drawing = self.denoise(drawing)
        return Image.fromarray(to_host(self.decode(drawing)[0]))

    def remembers(self, prompt: str) -> bool:
        """Whether `begin` would find the prompt's embedding in memory. Callable from any thread."""
        return prompt in self._prompts

    def drop_caches(self) -> None:
        """Forgets the embeddings of prompts, to free memory. Callable from any thread."""
        self._prompts.clear()

    @torch.no_grad()
    def begin(self, prompt: str, seeds: Sequence[int | None], *, steps: int, size: int) -> Drawing:
        """Encodes a prompt once and draws the noise of every picture.

        Returns once the device has finished both. What exceeds the length of a text encoder is
        ignored.

        Args:
            prompt: Any text.
            seeds: Seeds of the noise, one for each picture; None is the settings' seed. The noise
                is drawn on the CPU, so the same seed gives the same noise on every device and
                beside any other pictures.
            steps: Denoising steps, at least 1.
            size: Side of the pictures in pixels, a multiple of 16.

        Raises:
            ValueError: No picture has this number of steps or this size, or there are no seeds.
        """
        if not seeds:
            raise ValueError("no picture was asked for: there must be at least 1 seed")
        schedule = self._schedule(steps, size)
        side = size // self._block
        embedding = self.embed(prompt)
        # While the device encodes.
        noise = [
            self._noise(side, torch.Generator("cpu").manual_seed(seed))
            for seed in (self.settings.seed if seed is None else seed for seed in seeds)
        ]
        # Before the copy: one that waits in the device's queue holds up those of other streams.
        wait_for_stream(self._device)
        return Drawing(torch.cat(noise).to(self._device), embedding, schedule)

    @torch.no_grad()
    def denoise(self, drawing: Drawing) -> Drawing:
        """Takes one Euler step along the flow from noise to pictures (Liu et al. 2022).

        Returns once the device has finished it.

        Raises:
            ValueError: All steps have been taken.
        """
        index = drawing.index
        if index >= drawing.steps:
            raise ValueError(f"all {drawing.steps} denoising steps have been taken")
        latents = self._step(
            drawing.latents,
            drawing.schedule.times[index : index + 1],
            drawing.schedule.deltas[index : index + 1],
            *drawing.embedding,
        )
        wait_for_stream(self._device)
        return replace(drawing, latents=latents, index=index + 1)

    @torch.no_grad()
    def decode(self, drawing: Drawing) -> Tensor:
        """Turns finished latents into pixels; returns once the device has finished.

        Returns:
            (n, size, size, 3) uint8 RGB on the networks' device.

        Raises:
            ValueError: Denoising steps are missing.
        """
        if drawing.index < drawing.steps:
            raise ValueError(
                f"only {drawing.index} of {drawing.steps} denoising steps have been taken"
            )
        pixels: Tensor = self._decode(drawing.latents)
        wait_for_stream(self._device)
        return pixels

    @torch.no_grad()
    def embed(self, prompt: str) -> Embedding:
        """Encodes a prompt, or takes the embedding of one that was used recently.

        Returns:
            What the model's transformer sees of the prompt, in its number format.
        """
        embedding = self._prompts.get(prompt)
        if embedding is None:
            text = self.settings.template.replace("{prompt}", prompt)
            tokens = (ids.to(self._device) for ids in self._tokenise(text))
            embedding = self._encode(*tokens)
            self._prompts.add(prompt, embedding)
        return embedding

    @property
    def sequence_length(self) -> int:
        """Tokens that are kept of a prompt: the settings', or else the model's own."""
        return self.settings.max_sequence_length or self.SEQUENCE_LENGTH

    @property
    def _block(self) -> int:
        """Pixels per side of what one latent token is decoded to."""
        return 2 * int(self.pipeline.vae_scale_factor)

    @classmethod
    @abstractmethod
    def _load(
        cls, folder: Path, settings: TextToImageSettings, device: str, options: dict[str, Any]
    ) -> Any:
        """Loads the pipeline; only what is held in 8 bits has to be on the device."""

    @abstractmethod
    def _tokenise(self, text: str) -> tuple[Tensor, ...]:
        """Returns what `_encode_tokens` takes, each tensor (1, tokens), on the CPU."""

    @abstractmethod
    def _encoder_blocks(self) -> Iterable[nn.Module]:
        """Returns the blocks of the text encoder that takes the time, to be compiled."""

    @abstractmethod
    def _encode_tokens(self, *tokens: Tensor) -> Embedding:
        """Maps tokens to what the transformer sees of the prompt."""

    @abstractmethod
    def _noise(self, side: int, generator: torch.Generator) -> Tensor:
        """Draws the latents (1, side * side, C) of one picture on the CPU."""

    @abstractmethod
    def _shift(self, tokens: int, steps: int) -> float:
        """Returns what the noise levels of a picture with this number of tokens are shifted by."""

    @abstractmethod
    def _flow(self, latents: Tensor, time: Tensor, *embedding: Tensor) -> Tensor:
        """Asks the transformer; `time` is (1,), the noise level, the result as `latents`."""

    @abstractmethod
    def _decode_blocks(self, latents: Tensor) -> Tensor:
        """Maps latents as in `Drawing` to pictures (n, 3, size, size) in -1..1."""

    def _schedule(self, steps: int, size: int) -> Schedule:
        """Returns the noise levels for a number of steps and a size, computed once."""
        schedule = self._schedules.get((steps, size))
        if schedule is None:
            sigmas = self._sigmas(steps, size)
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

    def _sigmas(self, steps: int, size: int) -> tuple[float, ...]:
        """Returns `steps` + 1 noise levels from 1 to 0, as the pipeline's scheduler shifts them."""
        block = self._block
        if steps < 1 or not block <= size <= self.LARGEST_SIZE or size % block:
            raise ValueError(
                f"{self.NAME} cannot draw a picture of {size} pixels in {steps} steps: the size "
                f"must be a multiple of {block}, at most {self.LARGEST_SIZE}, and there must be at "
                "least 1 step"
            )
        scheduler = copy.deepcopy(self.pipeline.scheduler)  # `set_timesteps` changes it.
        shift = self._shift((size // block) ** 2, steps)
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist(), mu=shift)
        return tuple(scheduler.sigmas.tolist())

    def _denoise_latents(
        self, latents: Tensor, time: Tensor, delta: Tensor, *embedding: Tensor
    ) -> Tensor:
        """One Euler step; all shapes but those of `time` and `delta`, (1,), are as in `Drawing`."""
        # The models have learnt the rounding of this division.
        flow = self._flow(latents, time / 1000, *embedding)
        # The product is rounded to the networks' number format, the sum is not.
        change: Tensor = (delta * flow.float()).to(flow.dtype)
        return (latents.float() + change).to(latents.dtype)

    def _decode_latents(self, latents: Tensor) -> Tensor:
        """Maps latents as in `Drawing` to (n, size, size, 3) uint8 RGB."""
        bright = (self._decode_blocks(latents) * 0.5 + 0.5).clamp(0, 1).float()
        pixels: Tensor = (bright * 255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).contiguous()


def hold_in_eight_bits(
    network: nn.Module, layer: type[NarrowLinear], device: torch.device | str
) -> nn.Module:
    """Makes a network, or a part of one, take half of its memory, in place.

    Args:
        network: A transformer, a text encoder or a block of theirs.
        layer: What takes the place of its large linear layers.
        device: Where everything goes in the end.
    """
    quantise(network, layer, device=device)
    return network.to(device)
