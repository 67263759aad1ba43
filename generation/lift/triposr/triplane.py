"""The triplane: its learnt tokens, its upsampling to a scene code, and the decoder that reads it.

Plane 0 spans (x, y), plane 1 (x, z), plane 2 (y, z); the first axis runs along width, the second
along height. Attribute names are the checkpoint's keys.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposr.config import TripoSRConfig

SceneCode: TypeAlias = Tensor
"""(3, C, H, W): what the network knows of one object, as three feature planes."""

PLANE_AXES = ((0, 1), (0, 2), (1, 2))


class TriplaneTokens(nn.Module):
    """The learnt tokens that every scene code starts from."""

    def __init__(self, config: TripoSRConfig) -> None:
        super().__init__()
        size = config.plane_size
        self.embeddings = nn.Parameter(torch.zeros(3, config.num_channels, size, size))

    def forward(self, batch: int) -> Tensor:
        """Returns (batch, channels, 3 * S * S); token = plane * S * S + row * S + column."""
        return self.embeddings.transpose(0, 1).flatten(1).expand(batch, -1, -1)


class TriplaneUpsample(nn.Module):
    """Doubles each plane's resolution and brings its channels down to the scene code's."""

    def __init__(self, config: TripoSRConfig) -> None:
        super().__init__()
        self.plane_size = config.plane_size
        self.upsample = nn.ConvTranspose2d(
            config.num_channels, config.plane_channels, kernel_size=2, stride=2
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens (B, channels, 3 * S * S) to scene codes (B, 3, C, 2 * S, 2 * S)."""
        size = self.plane_size
        planes = torch.unflatten(tokens, 2, (3, size, size)).transpose(1, 2)
        return torch.unflatten(self.upsample(planes.flatten(0, 1)), 0, (-1, 3))


class Decoder(nn.Module):
    """The NeRF's network: features of a point to raw density and raw colour."""

    def __init__(self, config: TripoSRConfig) -> None:
        super().__init__()
        width = config.decoder_neurons
        layers: list[nn.Module] = [nn.Linear(3 * config.plane_channels, width), nn.SiLU()]
        for _ in range(config.decoder_hidden_layers - 1):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 4))

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (N, 3 * C) to raw density and raw red, green, blue (N, 4)."""
        raw: Tensor = self.layers(features)
        return raw

    def density(self, features: Tensor) -> Tensor:
        """Maps features (N, 3 * C) to raw density (N,)."""
        return self.density_after_first(self.layers[0](features))

    def density_after_first(self, hidden: Tensor) -> Tensor:
        """Maps outputs of the first linear layer (N, width) to raw density (N,)."""
        *inner, last = list(self.layers)[1:]
        for layer in inner:
            hidden = layer(hidden)
        assert isinstance(last, nn.Linear)
        return F.linear(hidden, last.weight[:1], last.bias[:1]).squeeze(-1)

    def plane_terms(self, planes: Tensor, dtype: torch.dtype) -> Tensor:
        """The first linear layer without its bias, taken apart by plane.

        The features of a point are its three planes' features joined, so the layer's output is the
        bias and the sum of three terms that each depend on one plane alone.

        Args:
            planes: (3, M, C) features.
            dtype: Of products and result.

        Returns:
            (3, M, width).
        """
        first = linear_layers(self)[0]
        weight = torch.unflatten(first.weight, 1, (3, -1)).permute(1, 2, 0)
        return planes.to(dtype) @ weight.to(dtype)


def linear_layers(decoder: Decoder) -> list[nn.Linear]:
    """The decoder's linear layers, first to last."""
    return [layer for layer in decoder.layers if isinstance(layer, nn.Linear)]


def sample_planes(scene_code: SceneCode, coordinates: Tensor) -> Tensor:
    """Reads the planes by bilinear interpolation, with zeros outside.

    Args:
        scene_code: (3, C, H, W), float32: eight bits of mantissa would misplace the points.
        coordinates: (3, N, 2) float32, (width, height) on each plane, -1..1 from edge to edge.

    Returns:
        (3, N, C) float32.
    """
    sampled = F.grid_sample(
        scene_code, coordinates[:, None], mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return sampled[:, :, 0].transpose(1, 2)


def point_features(scene_code: SceneCode, points: Tensor) -> Tensor:
    """Reads the joined features of points.

    Args:
        scene_code: (3, C, H, W) float32.
        points: (N, 3) float32 x y z, -1..1 inside the cube.

    Returns:
        (N, 3 * C) float32, plane-major.
    """
    axis = points.unbind(1)
    coordinates = torch.stack([torch.stack([axis[a], axis[b]], dim=1) for a, b in PLANE_AXES])
    return sample_planes(scene_code, coordinates).transpose(0, 1).flatten(1)


def grid_terms(decoder: Decoder, scene_code: SceneCode, resolution: int) -> Tensor:
    """Reads each plane on a regular grid and takes it through the decoder's first linear layer.

    Args:
        decoder: The decoder.
        scene_code: (3, C, H, W) float32.
        resolution: R, grid points per side, from edge to edge.

    Returns:
        (3, R, R, width) in the decoder's dtype, [plane][first axis][second axis]: the layer's
        output at grid point (x, y, z) is term 0 at (x, y) + term 1 at (x, z) + term 2 at (y, z).
    """
    line = torch.linspace(-1, 1, resolution, device=scene_code.device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    planes = sample_planes(scene_code, grid.expand(3, -1, -1))
    first = linear_layers(decoder)[0]
    terms = decoder.plane_terms(planes, first.weight.dtype)
    # The bias goes with the first plane's term.
    terms = torch.cat([terms[:1] + first.bias, terms[1:]])
    return torch.unflatten(terms, 1, (resolution, resolution))
