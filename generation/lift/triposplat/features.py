"""What the flow model sees of a picture: DINOv3's tokens and the latents of the FLUX.2 VAE."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.lift.triposplat.config import CONFIG_NAME
from generation.lift.triposplat.encoder_config import (
    PUBLIC_ENCODERS,
    DinoConfig,
    EncoderConfig,
    VaeConfig,
)
from generation.lift.triposplat.model import locate
from generation.quiet import quiet_libraries
from generation.weights.checkpoint import check_state_dict, read_state_dict

DINO_NAME, VAE_NAME = "dino.safetensors", "vae.safetensors"
PUBLIC_DINO_NAME = "clip_vision/dino_v3_vit_h.safetensors"
PUBLIC_VAE_NAME = "vae/flux2-vae.safetensors"
_NAMES = {DINO_NAME: PUBLIC_DINO_NAME, VAE_NAME: PUBLIC_VAE_NAME}

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PATCH = 2
"""Latents per side of a token."""
_NORM_EPS = 1e-5
_DECODER = ("decoder.", "post_quant_conv.")
_COUNTER = "bn.num_batches_tracked"


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
        picture_size: Pixels per side of the pictures that they were trained with, which is the
            canvas of `prepare.prepare`.
    """

    def __init__(
        self, dino: Any, vae: Any, picture_size: int = PUBLIC_ENCODERS.picture_size
    ) -> None:
        self.dino, self.vae, self.picture_size = dino, vae, picture_size
        self._reduction = 2 ** (len(vae.config.block_out_channels) - 1)
        self._side = self._reduction * _PATCH
        device = vae.bn.running_mean.device
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _STD)
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> "PictureEncoders":
        """Loads both networks, in eval mode and without gradients.

        Args:
            path_or_repo: A folder or a hub id such as "VAST-AI/TripoSplat". If it holds a
                `config.json`, `dino.safetensors` and `vae.safetensors` lie beside it; if not, it is
                the public model, with the names that its files have on the hub. DINOv3 may have
                the keys of transformers 4.56 or newer. A decoder of the VAE is not used.
            revision: Branch, tag or commit on the hub; ignored for a folder.
            device: Where to put the weights.
            dtype: Number format of the weights; bfloat16 on CUDA and float32 elsewhere when None.

        Raises:
            CheckpointError: A file is absent or damaged, or does not fit the config.
        """
        config_file, files = locate(path_or_repo, _NAMES, revision)
        config = EncoderConfig.load(config_file) if config_file else PUBLIC_ENCODERS
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        with torch.device("meta"):
            networks = build_dino(config.dinov3), build_vae(config.vae)
        for network, file in zip(networks, files, strict=True):
            _load(network, file, device, dtype)
        # Rotary frequencies are in no file, and stay in float32. In training mode they are random.
        rotary = type(networks[0].rope_embeddings)(networks[0].config)
        networks[0].rope_embeddings = rotary.to(device).eval()
        return cls(*networks, config.picture_size)

    @torch.no_grad()
    def __call__(
        self, picture: NDArray[np.uint8] | Tensor, generator: torch.Generator
    ) -> PictureFeatures:
        """Encodes a prepared picture.

        Args:
            picture: (H, W, 3) uint8 RGB on black, its sides multiples of DINOv3's patch; see
                `prepare.prepare`.
            generator: The run's, on the CPU; the noise of the VAE is drawn from it, always in
                float32: one seed gives the same noise on every device.

        Raises:
            ValueError: The picture has another shape or number format.
        """
        pixels = self._pixels(picture)
        height, width = (side // self._reduction for side in pixels.shape[-2:])
        noise = torch.randn(
            (1, self.vae.config.latent_channels, height, width), generator=generator
        )
        return PictureFeatures(
            self.dino_tokens(pixels), self.vae_tokens(pixels, noise.to(pixels.device))
        )

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
        tokens = latent_tokens(moments, noise, self.vae.bn)
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

        return DINOv3ViTModel(DINOv3ViTConfig(**config.model_dump()))


def build_vae(config: VaeConfig) -> Any:
    """Returns the encoder half of an `AutoencoderKLFlux2` with random weights."""
    with quiet_libraries():
        from diffusers import AutoencoderKLFlux2

        blocks = len(config.block_out_channels)
        vae = AutoencoderKLFlux2(
            **config.model_dump(),
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
        )
    vae.decoder = vae.post_quant_conv = None
    return vae


def fitted(file: Path, found: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns a file's tensors by the keys of a network, after comparing keys and shapes.

    Transformers 5 has DINOv3's layers below `model.`, where the public file has them at the top.

    Args:
        file: What messages call the file.
        found: What it holds; a VAE's decoder is left out.
        network: What it should fit.

    Raises:
        CheckpointError: See `check_state_dict`.
    """
    expected = network.state_dict()
    state = {
        # A file with both names keeps both, and one of them is surplus.
        f"model.{key}" if f"model.{key}" in expected.keys() - found else key: value
        for key, value in found.items()
        if not key.startswith(_DECODER) and key != _COUNTER
    }
    counter = expected.pop(_COUNTER, None)
    check_state_dict(file, state, expected, config_name=CONFIG_NAME)
    return state if counter is None else state | {_COUNTER: torch.zeros_like(counter, device="cpu")}


def _load(network: nn.Module, file: Path, device: torch.device, dtype: torch.dtype) -> None:
    """Fills a network on `meta`; the statistics of batch norms stay as they are."""
    for key, value in (state := fitted(file, read_state_dict(file), network)).items():
        state[key] = value.to(device, None if key.startswith("bn.") else dtype)
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False).eval()
