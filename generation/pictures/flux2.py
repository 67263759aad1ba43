"""Prompt to pictures: FLUX.2-klein, its networks from diffusers and transformers."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from torch import Tensor, nn

from generation.acceleration.eight_bit import Float8Linear
from generation.acceleration.streams import wait_for_stream
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.pictures.drawing import rows, unpack
from generation.pictures.prompt_memory import Embedding
from generation.pictures.text_to_image import TextToImage, hold_in_eight_bits
from generation.settings import TextToImageSettings

_LAYERS_READ = (9, 18, 27)
"""Hidden states of Qwen3 that the transformer sees, side by side; 0 is the embedding of tokens."""


class Flux2Klein(TextToImage):
    """FLUX.2-klein (Black Forest Labs 2026), the 4B model that is distilled for 4 steps.

    An embedding is one tensor: three hidden states of Qwen3 side by side, (1, 512, 7680). The rows
    of the padding belong to it: Qwen3 does not look at padding, the transformer does. A latent
    token is one place of the (128, S, S) latents, where S is the picture's side / 16. Sizes are
    those of FLUX.2-klein-4B.

    Args:
        pipeline: A `Flux2KleinPipeline` whose networks are on their device. What its transformer
            computes stays the same, but the rotary tables are kept and, if accelerated, projections
            fused.
        settings: See `TextToImage`.
        accelerate: See `TextToImage`.
        backend: See `TextToImage`.
    """

    NAME = "FLUX.2-klein"
    SEQUENCE_LENGTH = 512
    LARGEST_SIZE = 1024
    """The schedule of the noise levels jumps above 4,300 tokens, which pictures show."""

    def __init__(
        self,
        pipeline: Any,
        settings: TextToImageSettings,
        *,
        accelerate: bool = False,
        backend: str = "inductor",
    ) -> None:
        if accelerate and not settings.eight_bit:
            fuse_projections(pipeline.transformer)
        super().__init__(pipeline, settings, accelerate=accelerate, backend=backend)
        if self.sequence_length != self.SEQUENCE_LENGTH:
            logger.warning(
                "{} was trained with {} tokens, padding included: with max_sequence_length {} it "
                "draws other pictures",
                self.NAME,
                self.SEQUENCE_LENGTH,
                self.sequence_length,
            )
        self._tables = RotaryTables.of(pipeline.transformer)
        self._word_places = word_places(self.sequence_length, self._device)
        self._tables.keep(self._word_places)
        wait_for_stream(self._device)  # They are read on the stream of whoever draws.
        self._image_places: dict[int, Tensor] = {}

    @classmethod
    def _load(
        cls, folder: Path, settings: TextToImageSettings, device: str, options: dict[str, Any]
    ) -> Any:
        from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
        from transformers import Qwen3ForCausalLM

        # One after the other, so that main memory holds only one of them in 16 bits.
        encoder = Qwen3ForCausalLM.from_pretrained(folder / "text_encoder", **options)
        shorten(encoder)
        parts: dict[str, Any] = {"text_encoder": encoder}
        if settings.eight_bit:
            # Not the layer behind them, which makes words: its weights are those of the embedding.
            hold_in_eight_bits(encoder.model, TwelveBitLinear, device)
            transformer = Flux2Transformer2DModel.from_pretrained(folder / "transformer", **options)
            parts["transformer"] = hold_in_eight_bits(transformer, Float8Linear, device)
        return Flux2KleinPipeline.from_pretrained(folder, **options, **parts)

    def _tokenise(self, text: str) -> tuple[Tensor, ...]:
        tokenizer = self.pipeline.tokenizer
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        encoding = tokenizer(
            chat,
            padding="max_length",
            max_length=self.sequence_length,
            truncation=True,
            return_tensors="pt",
        )
        return encoding.input_ids, encoding.attention_mask.bool()

    def _encoder_blocks(self) -> Iterable[nn.Module]:
        layers: nn.ModuleList = self.pipeline.text_encoder.model.layers
        return layers

    def _encode_tokens(self, *tokens: Tensor) -> Embedding:
        """Maps ids and mask, both (1, T), to hidden states (1, T, 3 x hidden size)."""
        return (read_words(self.pipeline.text_encoder, *tokens).to(self._dtype),)

    def _noise(self, side: int, generator: torch.Generator) -> Tensor:
        channels = self.pipeline.transformer.config.in_channels
        shape = (1, channels, side, side)
        return rows(torch.randn(shape, generator=generator, dtype=self._dtype))

    def _shift(self, tokens: int, steps: int) -> float:
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        shift: float = compute_empirical_mu(tokens, steps)
        return shift

    def _flow(self, latents: Tensor, time: Tensor, *embedding: Tensor) -> Tensor:
        (words,) = embedding
        flow: Tensor = self.pipeline.transformer(
            hidden_states=latents,
            # One row for all pictures: it only modulates.
            timestep=time,
            encoder_hidden_states=words.expand(len(latents), -1, -1),
            txt_ids=self._word_places,
            img_ids=self._places(math.isqrt(latents.shape[1])),
            return_dict=False,
        )[0]
        return flow

    def _places(self, side: int) -> Tensor:
        """Places of image tokens, whose tables are kept before anything is recorded.

        A graph is recorded after its function has run, and reads the tables where they are.
        """
        if side not in self._image_places:
            self._image_places[side] = image_places(side, self._device)
            self._tables.keep(self._image_places[side])
        return self._image_places[side]

    def _decode_blocks(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        # The batch norm that the encoder ends with, undone.
        spread = torch.sqrt(vae.bn.running_var + vae.config.batch_norm_eps)
        latents = latents * spread.to(latents.dtype) + vae.bn.running_mean.to(latents.dtype)
        pictures: Tensor = vae.decode(unpack(latents), return_dict=False)[0]
        return pictures


class RotaryTables(nn.Module):
    """Stands in for a transformer's `pos_embed`, and keeps its answers for some positions.

    The library computes them in double precision at every call, from positions that never change.

    Args:
        compute: Maps positions (T, 4) to cosines and sines, each (T, head size).
    """

    def __init__(self, compute: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        self._kept: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    @classmethod
    def of(cls, transformer: Any) -> "RotaryTables":
        """Returns those of a transformer; puts them there the first time."""
        if not isinstance(transformer.pos_embed, cls):
            transformer.pos_embed = cls(transformer.pos_embed)
        tables: RotaryTables = transformer.pos_embed
        return tables

    def keep(self, places: Tensor) -> None:
        """Computes the tables of these positions once; they count by identity, not by value."""
        self._kept.append((places, self.compute(places)))

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the tables that are kept for this very tensor, or computes them."""
        for known, tables in self._kept:
            if known is places:
                return tables
        cosines, sines = self.compute(places)
        return cosines, sines


def read_words(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Returns what the transformer sees of a prompt; looks at no value on the host.

    The layers are called one by one: asked for its hidden states, transformers would hook into
    every layer, which could not be compiled then.

    Args:
        encoder: `Qwen3ForCausalLM`.
        ids: (1, T).
        mask: (1, T) bool; False is padding.

    Returns:
        (1, T, 3 x hidden size), in the encoder's number format.
    """
    model = encoder.model
    line = torch.arange(ids.shape[1], device=ids.device)
    # A padding row looks back, too, so no row of the mask is empty.
    visible = (line[:, None] >= line) & mask[:, None, None]
    hidden = model.embed_tokens(ids)
    tables = model.rotary_emb(hidden, line[None])
    states = []
    for index, layer in enumerate(model.layers, start=1):
        hidden = layer(hidden, attention_mask=visible, position_embeddings=tables)
        if index in _LAYERS_READ:
            states.append(hidden)
    return torch.cat(states, dim=-1)


def shorten(encoder: Any) -> None:
    """Leaves out what is behind the last hidden state that is read: a quarter of `Qwen3-4B`.

    The final norm is removed as well: diffusers would apply it to the last hidden state.

    Args:
        encoder: `Qwen3ForCausalLM`; changed in place.
    """
    del encoder.model.layers[_LAYERS_READ[-1] :]
    encoder.model.norm = nn.Identity()


def fuse_projections(transformer: Any) -> None:
    """Makes one product of those of query, key and value, which are otherwise three.

    Args:
        transformer: `Flux2Transformer2DModel`, its linear layers not yet narrow; changed in place.
    """
    with torch.no_grad():
        transformer.fuse_qkv_projections()  # Does nothing to layers that are fused already.
    for block in transformer.transformer_blocks:
        # diffusers keeps the separate layers, too.
        for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
            if hasattr(block.attn, name):
                delattr(block.attn, name)


def word_places(count: int, device: torch.device) -> Tensor:
    """(count, 4) whole numbers, because bfloat16 has too few: the last column numbers words."""
    line = torch.arange(count, device=device)
    nothing = line.new_zeros(1)
    return torch.cartesian_prod(nothing, nothing, nothing, line)


def image_places(side: int, device: torch.device) -> Tensor:
    """(side * side, 4): nothing, row, column and nothing of every image token."""
    line = torch.arange(side, device=device)
    nothing = line.new_zeros(1)
    return torch.cartesian_prod(nothing, line, line, nothing)
