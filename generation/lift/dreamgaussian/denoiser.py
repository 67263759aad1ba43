"""Guidance by a small view-conditioned denoiser, trained on the project's own small world.

The network sees the known view once. Of a noisy view from another side it then says how that view
should look without noise: colours times coverage, and coverage.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from generation.lift.dreamgaussian.dream import KnownView
from generation.lift.dreamgaussian.guidance import distil, drawn
from protocol.errors import SetupError

CONFIG_NAME, WEIGHTS_NAME = "config.json", "denoiser.safetensors"

_CHANNELS = 4
_GROUPS = 4


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Placement(_Frozen):
    """Where known views are taken from, and how cameras see.

    Attributes:
        elevation: Mean, in degrees above the horizon.
        spread: What an estimated elevation differs from the mean at most, in degrees.
        fov: Field of view in degrees.
    """

    elevation: float = Field(default=20.0, gt=-90, lt=90)
    spread: float = Field(default=8.0, gt=0, lt=90)
    fov: float = Field(default=31.4, gt=0, lt=180)

    @property
    def half_view(self) -> float:
        """Half of the side that a view covers at the origin, the same at any field of view."""
        return KnownView.distance * math.tan(math.radians(KnownView.fov / 2))

    @property
    def distance(self) -> float:
        """Of cameras from the origin."""
        return self.half_view / math.tan(math.radians(self.fov / 2))


class DenoiserConfig(_Frozen):
    """Shape of the network, and what it was trained for.

    Attributes:
        size: Pixels per side of its views, a multiple of 8.
        widths: Channels at a half, a quarter and an eighth of the size, multiples of 4.
        code: Numbers that describe the known view.
        heads: Of attention to the known view.
        placement: Of the cameras.
        times: Least and most noise at which it is asked, 0..1.
    """

    size: int = Field(default=48, ge=8, multiple_of=8)
    widths: tuple[int, int, int] = (40, 64, 96)
    code: int = Field(default=128, ge=1)
    heads: int = Field(default=4, ge=1)
    placement: Placement = Placement()
    times: tuple[float, float] = (0.02, 0.98)


class Seen(NamedTuple):
    """What the network knows of V known views.

    Attributes:
        code: (V, code).
        tokens: (V, T, C), of places in the picture.
        elevation: (V,) where it was taken from, in units of the spread around the mean.
    """

    code: Tensor
    tokens: Tensor
    elevation: Tensor


class _Block(nn.Module):
    """Two convolutions around a residual; the second is scaled and shifted by a condition."""

    def __init__(self, width: int, condition: int | None = None) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, width), nn.GroupNorm(_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.film = None if condition is None else nn.Linear(condition, 2 * width)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.film is not None and condition is not None:
            scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        out: Tensor = x + self.conv2(F.silu(hidden))
        return out


class _Attention(nn.Module):
    """Places of a view look at places of the known view."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        count, width, height, _ = x.shape
        places = self.norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, y in ((self.query, places), (self.key, tokens), (self.value, tokens))
        )
        # On a CPU, scaled_dot_product_attention is slow backwards in bfloat16.
        weights = (query @ key.mT / math.sqrt(width / self.heads)).softmax(dim=-1)
        found = (weights @ value).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(found).transpose(1, 2).view(count, width, height, -1)
        return out


class DenoiserNetwork(nn.Module):
    """The network: one part looks at the known view, a U-Net denoises others.

    Args:
        config: Its shape.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.widths
        side, code = config.size // 8, config.code
        pixels, coordinates = 4 * _CHANNELS, 2
        # The known view.
        self.look_in = nn.Conv2d(pixels + coordinates, fine, 3, padding=1)
        self.look_fine, self.look_middle = _Block(fine), _Block(middle)
        self.look_down1 = nn.Conv2d(fine, middle, 2, stride=2)
        self.look_down2 = nn.Conv2d(middle, coarse, 2, stride=2)
        self.look_coarse = _Block(coarse)
        self.look_out = nn.Linear(8 * side * side, code)
        self.look_pool = nn.Conv2d(coarse, 8, 1)
        self.look_elevation = nn.Linear(code, 1)
        self.places = nn.Parameter(0.1 * torch.randn(4 * side * side, middle))
        # Other views.
        self.ask = nn.Sequential(
            nn.Linear(code + _QUESTIONS, 2 * code), nn.SiLU(), nn.Linear(2 * code, code), nn.SiLU()
        )
        self.view_in = nn.Conv2d(pixels + coordinates, fine, 3, padding=1)
        self.down_fine, self.down_middle = _Block(fine, code), _Block(middle, code)
        self.down1 = nn.Conv2d(fine, middle, 2, stride=2)
        self.down2 = nn.Conv2d(middle, coarse, 2, stride=2)
        self.bottom = _Block(coarse, code)
        self.attend_down = _Attention(middle, config.heads)
        self.attend_up = _Attention(middle, config.heads)
        self.up2, self.up1 = nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)
        self.up_middle, self.up_fine = _Block(middle, code), _Block(fine, code)
        self.view_norm = nn.GroupNorm(_GROUPS, fine)
        self.view_out = nn.Conv2d(fine, pixels, 3, padding=1)
        self.register_buffer("grid", _grid(config.size), persistent=False)
        self.grid: Tensor

    def look(self, known: Tensor) -> Seen:
        """Looks at known views.

        Args:
            known: (V, 4, size, size) RGB times coverage, and coverage, in 0..1.
        """
        fine = self.look_fine(self.look_in(self._patches(2 * known - 1)))
        middle = self.look_middle(self.look_down1(fine))
        coarse = self.look_coarse(self.look_down2(middle))
        code = self.look_out(F.silu(self.look_pool(coarse)).flatten(1))
        tokens = middle.flatten(2).transpose(1, 2) + self.places
        return Seen(code, tokens, self.look_elevation(F.silu(code))[:, 0])

    def forward(self, noisy: Tensor, code: Tensor, tokens: Tensor, questions: Tensor) -> Tensor:
        """Denoises views.

        Args:
            noisy: (V, 4, size, size), see `add_noise`.
            code: (V, code) of the known views.
            tokens: (V, T, C) of the known views.
            questions: (V, Q), see `questions_of`.

        Returns:
            (V, 4, size, size) RGB times coverage, and coverage, about 0..1.
        """
        condition = self.ask(torch.cat([code, questions], dim=1))
        fine = self.down_fine(self.view_in(self._patches(noisy)), condition)
        middle = self.down_middle(self.down1(fine), condition)
        middle = self.attend_down(middle, tokens)
        coarse = self.bottom(self.down2(middle), condition)
        middle = self.up_middle(middle + self.up2(_double(coarse)), condition)
        middle = self.attend_up(middle, tokens)
        fine = self.up_fine(fine + self.up1(_double(middle)), condition)
        found = F.pixel_shuffle(self.view_out(F.silu(self.view_norm(fine))), 2)
        return (found + 1) / 2

    def _patches(self, pictures: Tensor) -> Tensor:
        grid = self.grid.to(pictures).expand(len(pictures), -1, -1, -1)
        return torch.cat([F.pixel_unshuffle(pictures, 2), grid], dim=1)


def _grid(size: int) -> Tensor:
    """Where the patches of a view are: (1, 2, size / 2, size / 2) in -1..1."""
    line = (torch.arange(size // 2) + 0.5) / (size // 4) - 1
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


_QUESTIONS = 13


def questions_of(azimuths: Tensor, elevations: Tensor, times: Tensor) -> Tensor:
    """What a view is asked with, (V, 13).

    Args:
        azimuths: (V,) radians from the known view, to the right.
        elevations: (V,) radians from the known view, upwards.
        times: (V,) amount of noise, 0..1.
    """
    waves = [f(n * azimuths) for n in (1, 2, 3, 4) for f in (torch.sin, torch.cos)]
    moments = [times, (math.pi * times).cos()]
    return torch.stack([*waves, elevations, elevations.sin(), elevations.cos(), *moments], dim=-1)


def add_noise(views: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Mixes views (V, 4, S, S) in 0..1 with normal noise; times (V,) are its share."""
    share = times[:, None, None, None]
    return (1 - share) * (2 * views - 1) + share * noise


class ViewDenoiser:
    """The network, ready to judge views.

    Args:
        network: On its device.
        scale: Of classifier-free guidance; 1 asks the network once, without the guidance.
    """

    def __init__(self, network: DenoiserNetwork, *, scale: float = 1.0) -> None:
        self.network = network.eval().requires_grad_(False)
        self.config, self.size, self._scale = network.config, network.config.size, scale

    @classmethod
    def from_pretrained(
        cls, folder: Path, *, device: torch.device, dtype: torch.dtype, scale: float
    ) -> "ViewDenoiser":
        """Loads what `write` wrote.

        Args:
            folder: With `config.json` and `denoiser.safetensors`.
            device: Where the network goes.
            dtype: Its number format.
            scale: Of classifier-free guidance.

        Raises:
            SetupError: A file is missing, damaged or does not fit.
        """
        try:
            config = DenoiserConfig.model_validate_json((folder / CONFIG_NAME).read_bytes())
            with torch.device("meta"):
                network = DenoiserNetwork(config)
            state = load_file(folder / WEIGHTS_NAME)
            network.load_state_dict(state, assign=True)
        except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
            raise SetupError(
                f"the view denoiser in {folder} cannot be loaded: {error}",
                fix="restore the folder from the repository, or train it again with "
                "python -m scripts.train_embedded.train_guidance",
            ) from error
        network.grid = _grid(config.size)
        return cls(network.to(device, dtype), scale=scale)

    @torch.no_grad()
    def begin(self, rgba: NDArray[np.uint8]) -> Seen:
        """Looks at the known view; see `Guidance.begin`."""
        weight = self.network.look_in.weight
        small = KnownView(rgba).target(self.size).permute(2, 0, 1)[None]
        return self.network.look(small.to(weight))

    def elevation(self, known: Seen, usual: float) -> float:
        """What the network has learned to estimate; see `Guidance.elevation`."""
        placement = self.config.placement
        off = float(known.elevation[0].clamp(-1, 1)) * placement.spread
        return placement.elevation + off

    def loss(
        self,
        known: Seen,
        pictures: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Draws views towards what they look like without noise; see `Guidance.loss`."""
        wanted = self.denoise(known, pictures.detach(), azimuths, elevations, time, generator)
        return distil(pictures, pictures - wanted)

    @torch.no_grad()
    def denoise(
        self,
        known: Seen,
        pictures: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        """How views should look: (V, 4, size, size) float32; for arguments see `Guidance.loss`."""
        least, most = self.config.times
        views = pictures.to(known.code)
        times = torch.full_like(azimuths, least + (most - least) * time).to(views)
        noisy = add_noise(views, drawn(views.shape, generator, views), times)
        questions = questions_of(azimuths.to(views), elevations.to(views), times)
        code = known.code.expand(len(views), -1)
        tokens = known.tokens.expand(len(views), -1, -1)
        found: Tensor = self.network(noisy, code, tokens, questions)
        if self._scale != 1:
            without = self.network(noisy, code * 0, tokens * 0, questions)
            found = without + self._scale * (found - without)
        return found.float().clamp(0, 1)


def write(network: DenoiserNetwork, folder: Path) -> None:
    """Writes a network for `ViewDenoiser.from_pretrained`, the weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(network.config.model_dump(mode="json"), indent=1)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    weights = {n: w.detach().cpu().half().contiguous() for n, w in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME)
