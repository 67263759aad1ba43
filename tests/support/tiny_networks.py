"""Random networks of a few thousand weights, and a GPU preset's settings that suit them."""

from pathlib import Path

import torch

from generation.lift.triposplat import TripoSplatConfig
from generation.lift.triposplat.config import FlowConfig, GaussianConfig, OctreeConfig
from generation.lift.triposplat.encoder_config import DinoConfig, EncoderConfig, VaeConfig
from generation.lift.triposr import TripoSRConfig, ViTConfig
from generation.presets import preset
from generation.quiet import quiet_libraries
from generation.settings import GenerationSettings, TextToImageSettings
from scripts.benchmarks.full_size import Sizes
from scripts.benchmarks.random_klein import KleinSizes, klein_pipeline, qwen
from scripts.benchmarks.random_zero123 import Zero123Sizes

KLEIN = KleinSizes(
    transformer={
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 96,
        "axes_dims_rope": (4, 4, 4, 4),
    },
    qwen={
        "vocab_size": 262,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 28,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
    },
    vae={
        "block_out_channels": (8, 8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
    },
)

_SPLAT = {"width": 64, "heads": 4, "head_dim": 16, "mlp_ratio": 4}

TRIPOSPLAT = TripoSplatConfig(
    flow=FlowConfig(
        **_SPLAT,
        latent_tokens=64,
        latent_channels=16,
        camera_channels=5,
        refiner_blocks=1,
        joint_blocks=2,
        condition_channels_dino=32,
        condition_channels_vae=16,
        camera_mlp_layers=2,
    ),
    octree=OctreeConfig(**_SPLAT, blocks=1, context_channels=16, levels=8),
    gaussian=GaussianConfig(**_SPLAT, blocks=1, context_channels=16, gaussians_per_point=32),
)

TRIPOSPLAT_ENCODERS = EncoderConfig(
    dinov3=DinoConfig(
        hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64
    ),
    vae=VaeConfig(
        block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=2
    ),
)

ZERO123 = Zero123Sizes(
    unet={
        "sample_size": 8,
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    },
    vae={
        "block_out_channels": (8, 8, 8),
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.18215,
    },
    clip={
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
    },
)

SIZES = Sizes(
    transformer={
        "in_channels": 64,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 24,
        "axes_dims_rope": (4, 6, 6),
    },
    t5={
        "vocab_size": 400,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
    },
    clip={
        "vocab_size": 600,
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
    },
    vae={
        "block_out_channels": (16, 16, 16, 16),
        "latent_channels": 16,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
    },
    klein=KLEIN,
    triposr=TripoSRConfig(
        image_size=64,
        plane_size=16,
        num_channels=64,
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=1,
        plane_channels=8,
        decoder_neurons=16,
        decoder_hidden_layers=2,
        vit=ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=64,
            patch_size=16,
        ),
    ),
    triposplat=TRIPOSPLAT,
    triposplat_encoders=TRIPOSPLAT_ENCODERS,
    triposplat_side=64,
    zero123=ZERO123,
    background="u2netp",
    background_side=64,
)


def tiny_settings(dtype: str = "float32", *, model: str = "schnell") -> GenerationSettings:
    """Preset gpu80, small and on the CPU.

    Args:
        dtype: Number format of all networks.
        model: Short name of the text-to-image model.
    """
    content = preset("gpu80").model_dump() | {"device": "cpu", "accelerate": False}
    content["text_to_image"] |= {"model": model, "size": 64, "steps": 2, "dtype": dtype}
    if model == "schnell":
        content["text_to_image"]["max_sequence_length"] = 16
    content["triposr"] |= {"chunk_size": 65_536, "dtype": dtype}
    content["triposplat"] |= {"dtype": dtype}
    content["splats"] |= {"max_gaussians": 8_000, "resolution": 48}
    content["mesh"] |= {"resolution": 48, "triangles": 2_000}
    return GenerationSettings.model_validate(content)


def save_tiny_klein(folder: Path) -> Path:
    """Writes a random FLUX.2-klein, a folder for each network, with all layers of its encoder."""
    cpu = torch.device("cpu")
    pipeline = klein_pipeline(TextToImageSettings(), cpu, KLEIN)
    pipeline.text_encoder = qwen(cpu, torch.float32, KLEIN, whole=True)
    with quiet_libraries():
        pipeline.save_pretrained(folder)
    return folder
