"""Prompt to pictures: FLUX.1, its networks from diffusers and transformers."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from generation.acceleration.eight_bit import Float8Linear, NarrowLinear
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.pictures.drawing import pack, places, unpack
from generation.pictures.prompt_memory import Embedding
from generation.pictures.text_to_image import TextToImage, hold_in_eight_bits
from generation.settings import TextToImageSettings

_CLIP_TOKENS = 77


class Flux1(TextToImage):
    """FLUX.1 (Black Forest Labs 2024).

    An embedding is T5's hidden states (1, tokens, 4096) and CLIP's pooled output (1, 768); each
    encoder ignores what exceeds its length. Latents are one token for each 2 x 2 block of the
    (C, S, S) latents, where S is the picture's side / 8. Sizes are those of FLUX.1.

    Args:
        pipeline: A `FluxPipeline` whose networks are on their device.
        settings: See `TextToImage`.
        accelerate: See `TextToImage`.
        backend: See `TextToImage`.
    """

    NAME = "FLUX.1"
    SEQUENCE_LENGTH = 256

    @classmethod
    def _load(
        cls, folder: Path, settings: TextToImageSettings, device: str, options: dict[str, Any]
    ) -> Any:
        from diffusers import FluxPipeline, FluxTransformer2DModel
        from transformers import T5EncoderModel

        parts: dict[str, Any] = {}
        if settings.eight_bit:
            # One after the other, so that main memory holds only one of them in 16 bits.
            for name, network, layer in (
                ("transformer", FluxTransformer2DModel, Float8Linear),
                ("text_encoder_2", T5EncoderModel, TwelveBitLinear),
            ):
                part = network.from_pretrained(folder / name, **options)
                parts[name] = hold_in_eight_bits(part, layer, device)
        return FluxPipeline.from_pretrained(folder, **options, **parts)

    def _tokenise(self, text: str) -> tuple[Tensor, ...]:
        pipeline = self.pipeline
        lengths = ((pipeline.tokenizer, _CLIP_TOKENS), (pipeline.tokenizer_2, self.sequence_length))
        return tuple(
            tokenizer(
                text, padding="max_length", max_length=count, truncation=True, return_tensors="pt"
            ).input_ids
            for tokenizer, count in lengths
        )

    def _encoder_blocks(self) -> Iterable[nn.Module]:
        return compilable(self.pipeline.text_encoder_2)

    def _encode_tokens(self, *tokens: Tensor) -> Embedding:
        """Maps ids (1, 77) and (1, T) to T5's hidden states and CLIP's pooled output."""
        clip, t5 = tokens
        words: Tensor = self.pipeline.text_encoder_2(t5)[0]
        pooled: Tensor = self.pipeline.text_encoder(clip).pooler_output
        return words.to(self._dtype), pooled.to(self._dtype)

    def _noise(self, side: int, generator: torch.Generator) -> Tensor:
        channels = self.pipeline.transformer.config.in_channels // 4
        shape = (1, channels, 2 * side, 2 * side)
        return pack(torch.randn(shape, generator=generator, dtype=self._dtype))

    def _shift(self, tokens: int, steps: int) -> float:
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = self.pipeline.scheduler.config
        shift: float = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        return shift

    def _flow(self, latents: Tensor, time: Tensor, *embedding: Tensor) -> Tensor:
        words, pooled = embedding
        side = math.isqrt(latents.shape[1])
        flow: Tensor = self.pipeline.transformer(
            hidden_states=latents,
            timestep=time,
            # One row for all pictures: it only modulates.
            pooled_projections=pooled,
            encoder_hidden_states=words.expand(len(latents), -1, -1),
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=places(side, words.device).to(words.dtype),
            guidance=self._guidance(),
            return_dict=False,
        )[0]
        return flow

    def _decode_blocks(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        blocks = unpack(latents) / vae.config.scaling_factor + vae.config.shift_factor
        pictures: Tensor = vae.decode(blocks, return_dict=False)[0]
        return pictures

    def _guidance(self) -> Tensor | None:
        if not self.pipeline.transformer.config.guidance_embeds:
            return None
        return torch.full((1,), self.settings.guidance, device=self._device)


def compilable(encoder: Any) -> Iterator[nn.Module]:
    """Yields what is compiled of a `T5EncoderModel`: layers whose weights are widened.

    Its whole blocks cannot be: compiled for torch 2.11, they fail as a graph is recorded.
    """
    return (layer for layer in encoder.modules() if isinstance(layer, NarrowLinear))
