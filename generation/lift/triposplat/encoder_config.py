"""The shapes of the two networks that look at the picture, read from `config.json` as data only."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from generation.lift.triposplat.config import Sections, Size
from generation.weights.sources import Frozen


class DinoConfig(Frozen):
    """DINOv3, in the words of transformers; the default is ViT-H+/16."""

    hidden_size: Size = 1280
    num_attention_heads: Size = 20
    num_hidden_layers: Size = 32
    patch_size: Size = 16
    num_register_tokens: Size = 4
    intermediate_size: Size = 5120
    hidden_act: Literal["silu", "gelu"] = "silu"
    use_gated_mlp: bool = True
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    rope_theta: Annotated[float, Field(gt=1)] = 100.0
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @model_validator(mode="after")
    def _has_whole_heads(self) -> Self:
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}, expected a multiple of 4 x "
                f"{self.num_attention_heads} heads"
            )
        return self


class VaeConfig(Frozen):
    """The VAE, in the words of diffusers; the default is FLUX.2's."""

    block_out_channels: Annotated[tuple[Size, ...], Field(min_length=1, max_length=8)] = (
        128,
        256,
        512,
        512,
    )
    layers_per_block: Size = 2
    latent_channels: Size = 32
    norm_num_groups: Size = 32
    batch_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """TripoSplat was trained with this one; diffusers has 1e-4."""

    @model_validator(mode="after")
    def _has_whole_groups(self) -> Self:
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(
                f"block_out_channels is {self.block_out_channels}, expected multiples of "
                f"norm_num_groups, {self.norm_num_groups}"
            )
        return self


class EncoderConfig(Sections):
    """Both networks. What their sections leave out is as in the public model."""

    dinov3: DinoConfig
    vae: VaeConfig
    picture_size: Size = 1024
    """Pixels per side of the pictures that the networks were trained with."""

    @model_validator(mode="after")
    def _has_tokens_of_one_size(self) -> Self:
        side = 2 ** len(self.vae.block_out_channels)
        if self.dinov3.patch_size != side:
            raise ValueError(
                f"dinov3.patch_size is {self.dinov3.patch_size}, expected {side}, which is the "
                "side of the VAE's tokens in pixels"
            )
        if self.picture_size % side:
            raise ValueError(
                f"picture_size is {self.picture_size}, expected a multiple of {side}, which is the "
                "side of a token in pixels"
            )
        return self


PUBLIC_ENCODERS = EncoderConfig(dinov3=DinoConfig(), vae=VaeConfig())
"""The encoders of VAST-AI/TripoSplat, which has no config file."""
