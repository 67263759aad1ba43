"""Guidance by zero123 (Liu et al. 2023): a diffusion model that knows an object from one picture.

A Stable Diffusion UNet sees the noisy view beside the known one; with each it gets the known
picture's CLIP vector and the way from one camera to the other, projected from 772
to 768.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from generation.acceleration.graphs import Captured
from generation.lift.dreamgaussian.guidance import distil, drawn
from protocol.errors import SetupError

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_SPREAD = (0.26862954, 0.26130258, 0.27577711)
_DAMAGED = (
    *(OSError, ValueError, KeyError, RuntimeError, EOFError),
    *(SafetensorError, pickle.UnpicklingError),
)
_FOLDERS = ("unet", "vae", "image_encoder", "clip_camera_projection", "scheduler")


class CameraProjection(nn.Module):
    """The linear layer in front of the UNet's context."""

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, context)

    def forward(self, context: Tensor) -> Tensor:
        """(..., channels) to (..., context)."""
        projected: Tensor = self.proj(context)
        return projected


@dataclass(frozen=True, eq=False)
class KnownPicture:
    """What the network knows of the known view.

    Attributes:
        latent: (1, 4, s, s), without the scaling factor.
        vector: (1, 1, C) of CLIP.
    """

    latent: Tensor
    vector: Tensor


class Zero123:
    """The networks, ready to judge views.

    Args:
        unet, vae, image_encoder, projection: On one device, in one number format.
        alphas: (T,) shares of signal that remain at each time of the training schedule.
        size: Pixels per side of its pictures.
        scale: Of classifier-free guidance.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        image_encoder: Any,
        projection: CameraProjection,
        alphas: Tensor,
        *,
        size: int = 256,
        scale: float = 5.0,
    ) -> None:
        for network in (unet, vae, image_encoder, projection):
            network.eval().requires_grad_(False)
        self.size, self._scale = size, scale
        self._unet, self._vae, self._encoder = unet, vae, image_encoder
        self._projection = projection
        self._predict: Callable[[Tensor, Tensor, Tensor], Tensor] = self._predicted
        self._alphas = alphas.double().cpu()
        self._dtype = projection.proj.weight.dtype
        self._device = projection.proj.weight.device

    @classmethod
    def from_pretrained(
        cls, folder: Path, *, device: torch.device, dtype: torch.dtype, scale: float
    ) -> "Zero123":
        """Loads a folder in the layout of zero123's conversions for diffusers.

        Args:
            folder: With `unet`, `vae`, `image_encoder`, `clip_camera_projection`, `scheduler`.
            device: Where the networks go.
            dtype: Their number format.
            scale: Of classifier-free guidance.

        Raises:
            SetupError: A part is missing, damaged or does not fit.
        """
        from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
        from transformers import CLIPVisionModelWithProjection

        missing = [name for name in _FOLDERS if not (folder / name).is_dir()]
        if missing:
            raise SetupError(
                f"zero123 needs {', '.join(missing)} in {folder}", fix="fetch its weights again"
            )
        given = {"torch_dtype": dtype, "local_files_only": True}
        try:
            unet = UNet2DConditionModel.from_pretrained(folder / "unet", **given)
            vae = AutoencoderKL.from_pretrained(folder / "vae", **given)
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                folder / "image_encoder", dtype=dtype, local_files_only=True
            )
            alphas = DDIMScheduler.from_pretrained(folder / "scheduler").alphas_cumprod
            projection = _read_projection(folder / "clip_camera_projection")
        except _DAMAGED as error:
            raise SetupError(
                f"zero123 in {folder} cannot be loaded: {error}", fix="fetch its weights again"
            ) from error
        if unet.config.in_channels != 8:
            raise SetupError(
                f"the UNet in {folder} takes {unet.config.in_channels} channels, zero123's takes 8",
                fix="name the repository of a zero123",
            )
        for network in (unet, vae, encoder, projection):
            network.to(device, dtype)
        size = int(unet.config.sample_size) * 2 ** (len(vae.config.block_out_channels) - 1)
        return cls(unet, vae, encoder, projection, alphas, size=size, scale=scale)

    def record(self) -> None:
        """Records the UNet's pass as a CUDA graph at its first call: launching it takes longer."""
        self._predict = Captured("zero123", self._predicted)

    @torch.no_grad()
    def begin(self, rgba: NDArray[np.uint8]) -> KnownPicture:
        """Encodes the known view, on white."""
        pixels = torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255
        on_white = pixels[:, :3] * pixels[:, 3:] + 1 - pixels[:, 3:]
        latent = self._vae.encode(self._fit(on_white, self.size) * 2 - 1).latent_dist.mode()
        mean, spread = (latent.new_tensor(x)[:, None, None] for x in (_CLIP_MEAN, _CLIP_SPREAD))
        seen = (self._fit(on_white, self._encoder.config.image_size) - mean) / spread
        return KnownPicture(latent, self._encoder(seen).image_embeds[:, None])

    def elevation(self, known: KnownPicture, usual: float) -> float:
        """The usual one; see `Guidance.elevation`."""
        return usual

    def loss(
        self,
        known: KnownPicture,
        pictures: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Score distillation, before black or white; see `Guidance.loss`."""
        white = int(torch.randint(2, (), generator=generator))
        seen = (pictures[:, :3] + white * (1 - pictures[:, 3:])).clamp(0, 1)
        posterior = self._vae.encode(seen.to(self._dtype) * 2 - 1).latent_dist
        noise = drawn(posterior.mean.shape, generator, posterior.mean)
        latent = (posterior.mean + posterior.std * noise) * self._vae.config.scaling_factor
        gradient = self._gradient(known, latent.detach(), azimuths, elevations, time, generator)
        return distil(latent.float(), gradient)

    @torch.no_grad()
    def _gradient(
        self,
        known: KnownPicture,
        latent: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        count, last = len(latent), len(self._alphas) - 1
        step = round(time * last)
        alpha = float(self._alphas[step])
        noise = drawn(latent.shape, generator, latent)
        noisy = math.sqrt(alpha) * latent + math.sqrt(1 - alpha) * noise
        # Its elevation is the angle from the zenith, which falls as the camera rises.
        way = torch.stack(
            [-elevations, azimuths.sin(), azimuths.cos(), torch.zeros_like(azimuths)], dim=-1
        ).to(latent)
        vector = known.vector.expand(count, -1, -1)
        context = self._projection(torch.cat([vector, way[:, None]], dim=-1))
        beside = known.latent.expand(count, -1, -1, -1)
        inputs = torch.cat(
            [
                torch.cat([noisy, torch.zeros_like(beside)], dim=1),
                torch.cat([noisy, beside], dim=1),
            ]
        )
        contexts = torch.cat([torch.zeros_like(context), context])
        steps = torch.full((2 * count,), step, device=self._device)
        without, guided = self._predict(inputs, steps, contexts).chunk(2)
        found = without + self._scale * (guided - without)
        gradient: Tensor = (1 - alpha) * (found - noise)
        return gradient.float()

    def _predicted(self, inputs: Tensor, steps: Tensor, contexts: Tensor) -> Tensor:
        noise: Tensor = self._unet(inputs, steps, encoder_hidden_states=contexts).sample
        return noise

    def _fit(self, pictures: Tensor, size: int) -> Tensor:
        small = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
        return small.to(self._device, self._dtype)


def _read_projection(folder: Path) -> CameraProjection:
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
        raise SetupError(f"{folder} holds no weights", fix="fetch zero123's weights again")
    file = files[0]
    if file.suffix == ".safetensors":
        tensors = load_file(file)
    else:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    context, channels = tensors["proj.weight"].shape
    projection = CameraProjection(channels, context)
    projection.load_state_dict(tensors)
    return projection
