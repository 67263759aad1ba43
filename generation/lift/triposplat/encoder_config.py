"""The shapes of the two networks that look at the picture, read from `config.json` as data only."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from generation.lift.triposr.errors import CheckpointError
from generation.weights.sources import Frozen
from protocol.documents import DocumentError, read_json
from protocol.text import printable

Size = Annotated[int, Field(strict=True, ge=1, le=16_384)]


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
    def _has_whole_heads(self) -> "DinoConfig":
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size must be a multiple of 4 x {self.num_attention_heads} heads"
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
    def _has_whole_groups(self) -> "VaeConfig":
        if any(channels % self.norm_num_groups for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels must be multiples of {self.norm_num_groups}")
        return self


class EncoderConfig(BaseModel):
    """Both networks; the default is the public model's."""

    # Other sections belong to other networks.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    dinov3: DinoConfig
    vae: VaeConfig

    @model_validator(mode="after")
    def _has_tokens_of_one_size(self) -> "EncoderConfig":
        side = 2 ** len(self.vae.block_out_channels)
        if self.dinov3.patch_size != side:
            raise ValueError(
                f"dinov3.patch_size is {self.dinov3.patch_size}, expected {side}, which is the "
                "side of the VAE's tokens in pixels"
            )
        return self

    @classmethod
    def load(cls, file: Path) -> "EncoderConfig":
        """Reads the sections `dinov3` and `vae` of a file; what they leave out is as in public.

        Raises:
            CheckpointError: The file is unreadable, a section is missing, or an entry is unknown
                or not supported.
        """
        try:
            return cls.model_validate(read_json(file))
        except DocumentError as error:
            raise CheckpointError(str(error)) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = printable(".".join(map(str, first["loc"])) or "the whole file", 80)
            found = printable(repr(first["input"]), 80)
            raise CheckpointError(
                f"{file}: {where} is {found}: {first['msg']}",
                fix="use the config that belongs to these weights",
            ) from error


PUBLIC_ENCODERS = EncoderConfig(dinov3=DinoConfig(), vae=VaeConfig())
"""The encoders of VAST-AI/TripoSplat, which has no config file."""
