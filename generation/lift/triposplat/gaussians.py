"""The Gaussian network, and what its outputs mean."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposplat.attention import (
    Attend,
    HeadNorm,
    Mlp,
    attend,
    linear_in_float32,
    norm,
)
from generation.lift.triposplat.config import VALUES_PER_GAUSSIAN, GaussianConfig
from generation.lift.triposplat.octree import LatentAttention
from generation.lift.triposplat.tables import hammersley, point_table


@dataclass(frozen=True, eq=False)
class PointGaussians:
    """G Gaussians in the frame of the networks, float32, all of a point together.

    The frame is right-handed: z up, the pictured front towards +x, right in the picture towards +y.

    Attributes:
        positions: (G, 3); the object lies in -0.5..0.5.
        scales: (G, 3) standard deviations along the local axes.
        rotations: (G, 4) w x y z, not normalised.
        opacity_logits: (G,) opacity before the sigmoid.
        colors_dc: (G, 3) degree-0 spherical-harmonic coefficients.
    """

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    colors_dc: Tensor


class GaussianDecoder(nn.Module):
    """The network; attribute names are the checkpoint's keys."""

    points_offset_perturbation: Tensor
    base_offset_scale: Tensor

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.config = config
        width, size = config.width, config.perturbation_size
        spread = torch.atanh((2 * hammersley(config.gaussians_per_point) - 1) / size)
        scale = torch.tensor(math.log(math.expm1(config.offset_scale)), dtype=torch.float32)
        self.register_buffer("points_offset_perturbation", spread.float())
        self.register_buffer("base_offset_scale", scale)
        self.input_layer = nn.Linear(width, width)
        self.blocks = nn.ModuleList(GaussianBlock(config) for _ in range(config.blocks))
        self.in_proj = nn.Linear(3, width)
        self.out_proj = nn.Linear(width, config.outputs)

    def forward(self, points: Tensor, latent: Tensor) -> Tensor:
        """Computes the features of points.

        Args:
            points: (B, N, 3) float32 in 0..1.
            latent: (B, L, latent channels).

        Returns:
            (B, N, outputs) float32, see `gaussians`.
        """
        config, dtype = self.config, self.in_proj.weight.dtype
        table = point_table(points, config.width, config.positions.octaves)
        hidden = self.input_layer(self.in_proj(points.to(dtype)) + table.to(dtype))
        for block in self.blocks:
            hidden = block(hidden, latent.to(dtype))
        return linear_in_float32(self.out_proj, norm(hidden.float(), config.final_norm_eps))

    def gaussians(self, points: Tensor, features: Tensor) -> PointGaussians:
        """Activates features, in float32, in every number format of the network.

        Args:
            points: (N, 3) float32 in 0..1.
            features: (N, outputs) float32.

        Returns:
            N times the Gaussians of a point.
        """
        config = self.config
        count = config.gaussians_per_point
        shares = [values * count for values in VALUES_PER_GAUSSIAN.values()]
        xyz, dc, scaling, rotation, opacity, offset_scale = (
            torch.unflatten(part, -1, (count, -1)) * config.factors.get(name, 1.0)
            for name, part in zip(
                VALUES_PER_GAUSSIAN, torch.split(features, shares, dim=-1), strict=True
            )
        )
        reach = F.softplus(offset_scale + self.base_offset_scale.float())
        offsets = torch.tanh(xyz + self.points_offset_perturbation.float())
        positions = points[:, None] + offsets * (config.perturbation_size / 2) * reach - 0.5
        scales = F.softplus(scaling + math.log(math.expm1(config.scale_bias)))
        unturned = F.pad(torch.ones_like(opacity), (0, 3))
        return PointGaussians(
            positions=positions.flatten(0, 1),
            scales=(scales.square() + config.scale_floor**2).sqrt().flatten(0, 1),
            rotations=(unturned + rotation).flatten(0, 1),
            opacity_logits=(opacity + _logit(config.opacity_bias)).flatten(),
            colors_dc=dc.flatten(0, 1),
        )


class GaussianBlock(nn.Module):
    """Self-attention of the points, cross-attention to the latent, feed-forward."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.eps = config.block_norm_eps
        self.norm2 = nn.LayerNorm(config.width, eps=config.block_norm_eps)
        self.self_attn = PointAttention(config)
        self.cross_attn = LatentAttention(config)
        self.mlp = Mlp([config.width, config.mlp_ratio * config.width, config.width])

    def forward(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """Maps (B, N, C) and the latent (B, L, latent channels) to (B, N, C)."""
        hidden = hidden + self.self_attn(norm(hidden, self.eps))
        hidden = hidden + self.cross_attn(self.norm2(hidden), latent)
        out: Tensor = hidden + self.mlp(norm(hidden, self.eps))
        return out


class PointAttention(nn.Module):
    """Self-attention of points."""

    def __init__(self, config: GaussianConfig) -> None:
        super().__init__()
        self.attend: Attend = attend
        self.heads = config.heads
        self.to_qkv = nn.Linear(config.width, 3 * config.width)
        self.q_rms_norm = HeadNorm(config.heads, config.head_dim)
        self.k_rms_norm = HeadNorm(config.heads, config.head_dim)
        self.to_out = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, N, C) to (B, N, C)."""
        query, key, value = self.to_qkv(hidden).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        out: Tensor = self.to_out(self.attend(self.q_rms_norm(query), self.k_rms_norm(key), value))
        return out


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))
