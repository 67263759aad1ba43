"""What the flow model sees of a picture: DINOv3's tokens and the latents of the FLUX.2 VAE."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.lift.triposr.errors import CheckpointError
from generation.quiet import quiet_libraries

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PATCH = 2
"""Latents per side of a token."""
_NORM_EPS = 1e-5
_DECODER = ("decoder.", "post_quant_conv.")
_FLOATS = ("F64", "F32", "F16", "BF16")
_FIX = "fetch the model again (the public one: VAST-AI/TripoSplat), or use the config of this file"

Header = Mapping[str, tuple[str, Sequence[int]]]
"""Number format, as safetensors names it, and shape of each tensor of a file."""


@dataclass(frozen=True)
class DinoConfig:
    """Shape of DINOv3, in the words of transformers; the default is ViT-H+/16."""

    hidden_size: int = 1280
    num_attention_heads: int = 20
    num_hidden_layers: int = 32
    patch_size: int = 16
    num_register_tokens: int = 4
    intermediate_size: int = 5120
    hidden_act: str = "silu"
    use_gated_mlp: bool = True
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    rope_theta: float = 100.0
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class VaeConfig:
    """Shape of the VAE, in the words of diffusers; the default is FLUX.2's.

    Attributes:
        batch_norm_eps: TripoSplat was trained with this one; diffusers has 1e-4.
    """

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 32
    norm_num_groups: int = 32
    batch_norm_eps: float = 1e-5


class PictureFeatures(NamedTuple):
    """The condition of the flow model, (1, T, channels) float32 each, T = 5 + tokens of a picture.

    Attributes:
        dino: Class token, registers and patches row by row, normalised over the channels.
        vae: Zeros in the place of class token and registers, then 2 x 2 latents row by row.
    """

    dino: Tensor
    vae: Tensor


class PictureEncoders:
    """DINOv3, from transformers, and the encoder half of the FLUX.2 VAE, from diffusers.

    Their weights may be float32 or bfloat16; what follows them is computed in float32.

    Args:
        dino: A `DINOv3ViTModel`.
        vae: An `AutoencoderKLFlux2`, whose decoder is not used, on the same device.

    Raises:
        ValueError: Their tokens are not of the same size.
    """

    def __init__(self, dino: Any, vae: Any) -> None:
        self.dino, self.vae = dino, vae
        self._reduction = 2 ** (len(vae.config.block_out_channels) - 1)
        self._side = self._reduction * _PATCH
        if dino.config.patch_size != self._side:
            raise ValueError(
                f"DINOv3's patches have {dino.config.patch_size} pixels per side, expected "
                f"{self._side}, which the VAE's tokens have"
            )
        device = vae.bn.running_mean.device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD)
        )

    @classmethod
    def from_files(
        cls,
        dino_file: Path,
        vae_file: Path,
        *,
        dino: DinoConfig | None = None,
        vae: VaeConfig | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "PictureEncoders":
        """Loads both networks, in eval mode and without gradients.

        Args:
            dino_file: Safetensors with the keys of transformers 4.56 or newer, such as
                `clip_vision/dino_v3_vit_h.safetensors`.
            vae_file: Safetensors such as `vae/flux2-vae.safetensors`; a decoder in it is not read.
            dino: Shape; the public one when None.
            vae: The same.
            device: Where to put the weights.
            dtype: Number format of the weights; bfloat16 on CUDA and float32 elsewhere when None.

        Raises:
            CheckpointError: A file is absent or damaged, or does not fit its config.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with torch.device("meta"):
            networks = build_dino(dino or DinoConfig()), build_vae(vae or VaeConfig())
        for network, file in zip(networks, (dino_file, vae_file), strict=True):
            _load(network, file, device, dtype)
        # Rotary frequencies are in no file, and stay in float32. In training mode they are random.
        rotary = type(networks[0].rope_embeddings)(networks[0].config)
        networks[0].rope_embeddings = rotary.to(device).eval()
        return cls(*networks)

    @torch.no_grad()
    def __call__(
        self, picture: NDArray[np.uint8] | Tensor, generator: torch.Generator
    ) -> PictureFeatures:
        """Encodes a prepared picture.

        Args:
            picture: (H, W, 3) uint8 RGB on black, its sides multiples of DINOv3's patch; see
                `prepare.prepare`.
            generator: The run's, on the CPU; the noise of the VAE is drawn from it, in float32
                whatever the networks compute in: one seed gives the same noise on every device.

        Raises:
            ValueError: The picture has another shape or number format.
        """
        pixels = self._pixels(picture)
        height, width = (side // self._reduction for side in pixels.shape[-2:])
        noise = torch.randn(
            (1, self.vae.config.latent_channels, height, width), generator=generator
        )
        return PictureFeatures(self.dino_tokens(pixels), self.vae_tokens(pixels, noise))

    def dino_tokens(self, pixels: Tensor) -> Tensor:
        """Maps RGB (1, 3, H, W) float32 in 0..1 to `PictureFeatures.dino`."""
        hidden = self.dino((pixels - self._mean) / self._std).last_hidden_state.float()
        return F.layer_norm(hidden, hidden.shape[-1:], eps=_NORM_EPS)

    def vae_tokens(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Maps RGB (1, 3, H, W) float32 in 0..1 and noise (1, C, H', W') to `PictureFeatures.vae`.

        H' and W' are the sides of the latents.
        """
        inputs = (2 * pixels - 1).to(self.vae.dtype)
        moments = self.vae.encode(inputs).latent_dist.parameters.float()
        tokens = latent_tokens(moments, noise.to(moments.device), self.vae.bn)
        prefix = 1 + self.dino.config.num_register_tokens
        return F.pad(tokens, (0, 0, prefix, 0))

    def _pixels(self, picture: NDArray[np.uint8] | Tensor) -> Tensor:
        pixels = picture if isinstance(picture, Tensor) else torch.from_numpy(np.array(picture))
        shape = tuple(pixels.shape)
        if pixels.dtype != torch.uint8 or len(shape) != 3 or shape[-1] != 3:
            raise ValueError(
                f"picture holds {pixels.dtype} and has shape {shape}, expected torch.uint8 and "
                "(height, width, 3)"
            )
        if 0 in shape or shape[0] % self._side or shape[1] % self._side:
            raise ValueError(
                f"picture is {shape[1]} x {shape[0]} pixels, expected multiples of {self._side}"
            )
        pixels = pixels.to(self._mean.device).float() / 255
        return pixels.permute(2, 0, 1)[None].contiguous()


def latent_tokens(moments: Tensor, noise: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Samples latents and makes tokens of them.

    Args:
        moments: (1, 2C, H, W) float32: mean, then log variance.
        noise: (1, C, H, W) float32.
        norm: The statistics of the 4C channels of a token; not those of a batch.

    Returns:
        (1, H / 2 x W / 2, 4C) float32, row by row; channel 4c + 2 dy + dx.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance) * noise
    patches = F.pixel_unshuffle(latents, _PATCH).flatten(2).transpose(1, 2)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return (patches - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)


def build_dino(config: DinoConfig) -> Any:
    """Returns a `DINOv3ViTModel` with random weights."""
    with quiet_libraries():
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        return DINOv3ViTModel(DINOv3ViTConfig(**asdict(config)))


def build_vae(config: VaeConfig) -> Any:
    """Returns the encoder half of an `AutoencoderKLFlux2` with random weights."""
    with quiet_libraries():
        from diffusers import AutoencoderKLFlux2

        blocks = len(config.block_out_channels)
        vae = AutoencoderKLFlux2(
            **asdict(config),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
        )
    vae.decoder = vae.post_quant_conv = None
    return vae


def match_keys(file: Path, header: Header, network: nn.Module) -> dict[str, str]:
    """Finds which tensor of a file is which of a network.

    Transformers 5 has DINOv3's layers below `model.`, where the public file has them at the top.

    Args:
        file: What messages call the file.
        header: What it holds; a VAE's decoder counts as absent.
        network: What it should fit.

    Returns:
        Keys of the file by keys of the network.

    Raises:
        CheckpointError: Names missing, surplus and unfit tensors, with what was expected.
    """
    expected = network.state_dict()
    keys = {
        f"model.{key}" if key not in expected and f"model.{key}" in expected else key: key
        for key in header
        if not key.startswith(_DECODER)
    }
    problems = [
        f"{key} is missing, expected {_shape(expected[key])}" for key in expected.keys() - keys
    ]
    for key, stored in keys.items():
        kind, shape = header[stored]
        if key not in expected:
            problems.append(f"{stored} is surplus, found {_shape(shape)}")
        elif list(shape) != list(expected[key].shape):
            problems.append(f"{stored} has shape {_shape(shape)}, expected {_shape(expected[key])}")
        elif expected[key].is_floating_point() and kind not in _FLOATS:
            problems.append(f"{stored} holds {kind}, expected one of {', '.join(_FLOATS)}")
    if problems:
        shown = "; ".join(sorted(problems)[:4]) + ("; ..." if len(problems) > 4 else "")
        name = type(network).__name__
        raise CheckpointError(
            f"{file} does not fit {name}, {len(problems)} of its tensors differ: {shown}", fix=_FIX
        )
    return keys


def _shape(value: Tensor | Sequence[int]) -> str:
    return str(tuple(value.shape if isinstance(value, Tensor) else value))


def _load(network: nn.Module, file: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Fills a network on `meta`; the statistics of batch norms stay as they are."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            slices = {key: tensors.get_slice(key) for key in tensors.keys()}  # noqa: SIM118
            header = {key: (part.get_dtype(), part.get_shape()) for key, part in slices.items()}
            keys = match_keys(file, header, network)
            state = {key: tensors.get_tensor(stored) for key, stored in keys.items()}
    except (OSError, SafetensorError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{file} cannot be read as safetensors: {first}", fix=_FIX) from error
    for key, value in state.items():
        state[key] = value.to(device, None if key.startswith("bn.") else dtype)
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()
