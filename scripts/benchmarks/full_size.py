"""The networks of a preset at full size with random weights: speed and memory, no downloads.

Each weight is drawn on the device from a generator seeded by the weight's name, so every recipe
gets the same ones, however the networks are held.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from generation.acceleration.eight_bit import Float8Linear
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.lift.triposplat import PUBLIC, TripoSplat, TripoSplatConfig
from generation.lift.triposplat.encoder_config import PUBLIC_ENCODERS, EncoderConfig
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.prepare import CANVAS
from generation.lift.triposr import TripoSR, TripoSRConfig
from generation.loading import PictureNetworks, require_device, start_compiling
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.pictures.flux2 import Flux2Klein
from generation.pictures.text_to_image import TextToImage, hold_in_eight_bits
from generation.quiet import quiet_libraries
from generation.scoring.score import Scorer
from generation.settings import CutoutSettings, GenerationSettings, TextToImageSettings
from generation.weights.sources import FLUX_KLEIN
from generation.weights.store import EMBEDDED
from scripts.benchmarks import random_triposplat
from scripts.benchmarks.networks import Lift, Networks
from scripts.benchmarks.random_klein import FULL_KLEIN, KleinSizes, klein_pipeline
from scripts.benchmarks.random_triposr import untrained
from scripts.benchmarks.random_weights import fill
from scripts.benchmarks.random_zero123 import FULL_ZERO123, Zero123Sizes
from scripts.benchmarks.u2net import write_random


@dataclass(frozen=True)
class Sizes:
    """Shapes of the networks, in the words of their libraries' configs.

    Attributes:
        transformer: `FluxTransformer2DModel`.
        t5: `T5Config`.
        clip: `CLIPTextConfig`.
        vae: `AutoencoderKL`.
        klein: FLUX.2-klein, whose networks take the place of these four.
        triposr: TripoSR.
        triposplat: TripoSplat.
        triposplat_encoders: What it looks at pictures with.
        triposplat_side: Pixels per side of these pictures, where a benchmark prepares them.
        zero123: zero123, where a dream is guided by it.
        background: Which network of rembg's removes the background.
        background_side: Pixels per side of its input; those of rembg's file if None, and wherever
            rembg runs it.
    """

    transformer: Mapping[str, Any]
    t5: Mapping[str, Any]
    clip: Mapping[str, Any]
    vae: Mapping[str, Any]
    klein: KleinSizes = FULL_KLEIN
    triposr: TripoSRConfig = field(default_factory=TripoSRConfig)
    triposplat: TripoSplatConfig = PUBLIC
    triposplat_encoders: EncoderConfig = PUBLIC_ENCODERS
    triposplat_side: int = CANVAS
    zero123: Zero123Sizes = FULL_ZERO123
    background: Literal["isnet-general-use", "u2netp"] = "isnet-general-use"
    background_side: int | None = None


FULL = Sizes(
    transformer={
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "axes_dims_rope": (16, 56, 56),
    },
    t5={
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
    },
    clip={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 16,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
)
"""FLUX.1-schnell and FLUX.2-klein-4B, the public TripoSR and TripoSplat, rembg's
isnet-general-use."""


def build(settings: GenerationSettings, folder: Path, sizes: Sizes = FULL) -> Networks:
    """Builds what `load_networks` would load.

    Args:
        settings: The preset; says where, in which number format, and what to accelerate.
        folder: Where the background network is written as ONNX.
        sizes: Shapes of the networks.

    Raises:
        SetupError: The device is not there.
    """
    device = require_device(settings)
    start_compiling(settings, device)
    # First, because it is drawn in float32: while that is, no other network takes memory.
    lift = lifting(settings, device, sizes)
    draw = text_to_image(settings.text_to_image, device, sizes, accelerate=settings.accelerate)
    cut_out = background(settings.cutout, device, folder, sizes)
    networks = Networks(
        PictureNetworks(draw, cut_out),
        lift,
        _scorer(settings, device) if sizes is FULL else None,
    )
    if device.type == "cuda":
        # The room that wide blocks took before they were held in 8 bits.
        torch.cuda.empty_cache()
    return networks


def _scorer(settings: GenerationSettings, device: torch.device) -> Scorer | None:
    if settings.scoring.scorer != "validator":
        return None
    from generation.scoring.validator import Shapes
    from scripts.benchmarks.scoring import random_scorer

    dtype = getattr(torch, settings.scoring.dtype)
    return random_scorer(device, dtype, Shapes(), accelerate=settings.accelerate)


def text_to_image(
    settings: TextToImageSettings,
    device: torch.device,
    sizes: Sizes = FULL,
    *,
    accelerate: bool = False,
    backend: str = "inductor",
) -> TextToImage:
    """Builds the text-to-image model that the settings name, FLUX.1 if they name none."""
    if settings.model is not None and settings.model.repo == FLUX_KLEIN.repo:
        pipeline = klein_pipeline(settings, device, sizes.klein)
        return Flux2Klein(pipeline, settings, accelerate=accelerate, backend=backend)
    pipeline = flux_pipeline(settings, device, sizes)
    return Flux1(pipeline, settings, accelerate=accelerate, backend=backend)


def flux_pipeline(settings: TextToImageSettings, device: torch.device, sizes: Sizes = FULL) -> Any:
    """Builds a `FluxPipeline`; in 8 bits it never takes more than one block over its final size."""
    dtype = getattr(torch, settings.dtype)
    tokenizers = EMBEDDED / "flux"  # Small vocabularies: their ids exist in the large ones.
    with quiet_libraries():
        from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
        from transformers import CLIPTokenizer, T5TokenizerFast

        pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
            vae=vae(device, dtype, sizes),
            text_encoder=clip(device, dtype, sizes),
            tokenizer=CLIPTokenizer.from_pretrained(tokenizers / "tokenizer"),
            text_encoder_2=t5(device, dtype, sizes, eight_bit=settings.eight_bit),
            tokenizer_2=T5TokenizerFast.from_pretrained(tokenizers / "tokenizer_2"),
            transformer=transformer(device, dtype, sizes, eight_bit=settings.eight_bit),
        )
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer(
    device: torch.device, dtype: torch.dtype, sizes: Sizes = FULL, *, eight_bit: bool = False
) -> Any:
    """Builds FLUX's transformer, its large layers in e4m3 if `eight_bit`."""
    with quiet_libraries():
        from diffusers import FluxTransformer2DModel

        with torch.device("meta"):
            network = FluxTransformer2DModel(**sizes.transformer, guidance_embeds=False)
    finish = partial(hold_in_eight_bits, layer=Float8Linear, device=device) if eight_bit else None
    return fill(network, "transformer", device, dtype, finish=finish)


def t5(
    device: torch.device, dtype: torch.dtype, sizes: Sizes = FULL, *, eight_bit: bool = False
) -> Any:
    """Builds T5's encoder, its large layers in 12 bits if `eight_bit`."""
    with quiet_libraries():
        from transformers import T5Config, T5EncoderModel

        with torch.device("meta"):
            network = T5EncoderModel(T5Config(**sizes.t5, feed_forward_proj="gated-gelu"))
    finish = (
        partial(hold_in_eight_bits, layer=TwelveBitLinear, device=device) if eight_bit else None
    )
    # T5's attention does not divide by the root of the head's size; its trained queries do.
    gains = {"q": sizes.t5["d_kv"] ** -0.5}
    return fill(network, "t5", device, dtype, gains=gains, finish=finish)


def clip(device: torch.device, dtype: torch.dtype, sizes: Sizes = FULL) -> Any:
    """Builds CLIP's text encoder, which pools at the highest id, as FLUX.1's does."""
    with quiet_libraries():
        from transformers import CLIPTextConfig, CLIPTextModel

        # Not on meta: its position ids are a buffer that no checkpoint holds.
        config = CLIPTextConfig(**sizes.clip, bos_token_id=0, eos_token_id=2, pad_token_id=1)
        with torch.device(device):
            network = CLIPTextModel(config)
    return fill(network, "clip", device, dtype)


def vae(device: torch.device, dtype: torch.dtype, sizes: Sizes = FULL) -> Any:
    """Builds FLUX's autoencoder; its pictures have all brightnesses, and some pixels clipped."""
    with quiet_libraries():
        from diffusers import AutoencoderKL

        stages = len(sizes.vae["block_out_channels"])
        with torch.device(device):
            network = AutoencoderKL(
                **sizes.vae,
                down_block_types=("DownEncoderBlock2D",) * stages,
                up_block_types=("UpDecoderBlock2D",) * stages,
                use_quant_conv=False,
                use_post_quant_conv=False,
            )
    return fill(network, "vae", device, dtype)


def lifting(settings: GenerationSettings, device: torch.device, sizes: Sizes = FULL) -> Lift:
    """Builds the networks of the preset's back end."""
    if settings.lift.backend == "triposr":
        return triposr(settings, device, sizes)
    networks = triposplat(settings, device, sizes)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return networks


def triposplat(
    settings: GenerationSettings, device: torch.device, sizes: Sizes = FULL
) -> tuple[TripoSplat, PictureEncoders]:
    """Builds TripoSplat and its encoders; every picture gives one solid body."""
    dtype = getattr(torch, settings.triposplat.dtype)
    return (
        random_triposplat.untrained(sizes.triposplat, device=device, dtype=dtype),
        random_triposplat.untrained_encoders(sizes.triposplat_encoders, device=device, dtype=dtype),
    )


def triposr(settings: GenerationSettings, device: torch.device, sizes: Sizes = FULL) -> TripoSR:
    """Builds TripoSR; every picture gives one closed body."""
    model = untrained(sizes.triposr, device=device)
    model.query_chunk = settings.triposr.chunk_size
    model.to(getattr(torch, settings.triposr.dtype))
    model.fit_positions()
    return model


def background(
    settings: CutoutSettings, device: torch.device, folder: Path, sizes: Sizes = FULL
) -> BackgroundRemover:
    """Builds the background remover on a network in the folder."""
    if settings.runtime == "onnxruntime":
        sizes = replace(sizes, background_side=None)
    file = background_file(folder, sizes)
    return BackgroundRemover(file, settings, device)


def background_file(folder: Path, sizes: Sizes = FULL) -> Path:
    """Writes the background network, which finds an object in the middle of every picture."""
    side = sizes.background_side
    # A file with a name of rembg's would be read with the side of rembg's.
    file = folder / (f"{sizes.background}.onnx" if side is None else f"random-{side}.onnx")
    write_random(file, sizes.background, side=side)
    return file
