"""FLUX.2-klein with random weights, at full size or any other, and a tokenizer of single bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from generation.acceleration.eight_bit import Float8Linear
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.pictures.flux2 import shorten
from generation.pictures.text_to_image import hold_in_eight_bits
from generation.quiet import quiet_libraries
from generation.settings import TextToImageSettings
from scripts.benchmarks.random_weights import fill

PADDING, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"

_CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}
{{- '<think>\n\n</think>\n\n' }}
{%- endif %}
{%- endif %}"""
"""Frames a message as Qwen3's own template does."""


@dataclass(frozen=True)
class KleinSizes:
    """Shapes of the networks, in the words of their libraries' configs.

    Attributes:
        transformer: `Flux2Transformer2DModel`.
        qwen: `Qwen3Config`.
        vae: `AutoencoderKLFlux2`.
    """

    transformer: Mapping[str, Any]
    qwen: Mapping[str, Any]
    vae: Mapping[str, Any]


FULL_KLEIN = KleinSizes(
    transformer={
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "axes_dims_rope": (32, 32, 32, 32),
    },
    qwen={
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 32,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
    },
)
"""FLUX.2-klein-4B."""


def klein_pipeline(
    settings: TextToImageSettings, device: torch.device, sizes: KleinSizes = FULL_KLEIN
) -> Any:
    """Builds a `Flux2KleinPipeline` without the layers of Qwen3 that nothing reads.

    In 8 bits it never takes more than one block over its final size.
    """
    dtype = getattr(torch, settings.dtype)
    with quiet_libraries():
        from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

        pipeline = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
            ),
            vae=vae(device, dtype, sizes),
            text_encoder=qwen(device, dtype, sizes, eight_bit=settings.eight_bit),
            tokenizer=byte_tokenizer(),
            transformer=transformer(device, dtype, sizes, eight_bit=settings.eight_bit),
            is_distilled=True,
        )
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer(
    device: torch.device,
    dtype: torch.dtype,
    sizes: KleinSizes = FULL_KLEIN,
    *,
    eight_bit: bool = False,
) -> Any:
    """Builds klein's transformer, its large layers in e4m3 if `eight_bit`."""
    with quiet_libraries():
        from diffusers import Flux2Transformer2DModel

        with torch.device("meta"):
            network = Flux2Transformer2DModel(**sizes.transformer, guidance_embeds=False)
    finish = partial(hold_in_eight_bits, layer=Float8Linear, device=device) if eight_bit else None
    return fill(network, "klein", device, dtype, finish=finish)


def qwen(
    device: torch.device,
    dtype: torch.dtype,
    sizes: KleinSizes = FULL_KLEIN,
    *,
    eight_bit: bool = False,
    whole: bool = False,
) -> Any:
    """Builds Qwen3, its large layers in 12 bits if `eight_bit`; all of its layers if `whole`."""
    with quiet_libraries():
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(**sizes.qwen, tie_word_embeddings=True)
        with torch.device("meta"):
            network = Qwen3ForCausalLM(config)
        model: Any = network.model
        if not whole:
            shorten(network)
        # Its frequencies are buffers that no checkpoint holds.
        with torch.device(device):
            model.rotary_emb = type(model.rotary_emb)(config=config)

    def finish(module: nn.Module) -> None:
        # Not the layer behind the model: its weights are those of the embedding.
        hold_in_eight_bits(model if module is network else module, TwelveBitLinear, device)

    return fill(network, "qwen", device, dtype, finish=finish if eight_bit else None)


def vae(device: torch.device, dtype: torch.dtype, sizes: KleinSizes = FULL_KLEIN) -> Any:
    """Builds klein's autoencoder; the statistics of its latents are not 0 and 1."""
    with quiet_libraries():
        from diffusers import AutoencoderKLFlux2

        with torch.device(device):
            network = AutoencoderKLFlux2(**sizes.vae)
    filled: Any = fill(network, "klein-vae", device, dtype)
    filled.to(dtype)  # The statistics are buffers.
    channels = torch.arange(len(filled.bn.running_mean), device=device)
    filled.bn.running_mean.copy_((channels % 5 - 2) / 4)
    filled.bn.running_var.copy_(1 + channels % 3)
    return filled


def byte_tokenizer() -> Any:
    """A tokenizer with one id per byte, three special tokens, and Qwen3's chat template."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2TokenizerFast

    vocabulary = {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {
        token: len(vocabulary) + index for index, token in enumerate((PADDING, END, START))
    }
    return Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=[],
        unk_token=PADDING,
        eos_token=END,
        pad_token=PADDING,
        additional_special_tokens=[START],
        chat_template=_CHAT_TEMPLATE,
    )
