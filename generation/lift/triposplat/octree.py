"""The octree network, and how points are drawn from it.

Every occupied cell holds a number of points. The network says how likely each of its eight
children is, and the points are dealt out to them, level by level.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from generation.lift.triposplat.attention import (
    Attend,
    HeadNorm,
    Mlp,
    attend,
    linear_in_float32,
    modulated_block,
    norm,
)
from generation.lift.triposplat.config import GaussianConfig, OctreeConfig
from generation.lift.triposplat.tables import point_table, sinusoid

Uniform = Callable[..., Tensor]
"""Takes a shape; returns random numbers in 0..1, float32, on any device."""


class OctreeDecoder(nn.Module):
    """The network; attribute names are the checkpoint's keys."""

    def __init__(self, config: OctreeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.input_layer = nn.Linear(width, width)
        self.l_embedder = Mlp([config.level_sinusoid.size, width, width], nn.SiLU)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.blocks = nn.ModuleList(OctreeBlock(config) for _ in range(config.blocks))
        self.out_proj = nn.Linear(width, 8)
        self.in_proj = nn.Linear(3, width)

    def forward(self, points: Tensor, resolution: Tensor, latent: Tensor) -> Tensor:
        """Computes how likely the children of cells are.

        Args:
            points: (B, N, 3) float32 centres of cells in 0..1.
            resolution: (B,) cells per axis of the children's level.
            latent: (B, L, latent channels).

        Returns:
            Logits (B, N, 8) float32; child c has the offset (c & 1, c >> 1 & 1, c >> 2).
        """
        config, dtype = self.config, self.in_proj.weight.dtype
        level = sinusoid(resolution, config.level_sinusoid, turn=2 * math.pi)
        modulation = self.adaLN_modulation(self.l_embedder(level.to(dtype)))
        parts = modulation[:, None].chunk(6, dim=-1)
        table = point_table(points, config.width, config.positions.octaves)
        hidden = self.input_layer(self.in_proj(points.to(dtype)) + table.to(dtype))
        for block in self.blocks:
            hidden = block(hidden, latent.to(dtype), parts)
        return linear_in_float32(self.out_proj, norm(hidden.float(), config.final_norm_eps))


class OctreeBlock(nn.Module):
    """Cross-attention and feed-forward, shifted, scaled and gated by the level."""

    def __init__(self, config: OctreeConfig) -> None:
        super().__init__()
        self.eps = config.block_norm_eps
        self.cross_attn = LatentAttention(config)
        self.mlp = Mlp([config.width, config.mlp_ratio * config.width, config.width])

    def forward(self, hidden: Tensor, latent: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Maps (B, N, C) to (B, N, C); the six parts of the modulation are (B, 1, C)."""
        return modulated_block(
            hidden, parts, self.eps, lambda normed: self.cross_attn(normed, latent), self.mlp
        )


class LatentAttention(nn.Module):
    """Cross-attention of points to the latent."""

    def __init__(self, config: OctreeConfig | GaussianConfig) -> None:
        super().__init__()
        self.attend: Attend = attend
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_kv = nn.Linear(config.context_channels, 2 * config.width)
        self.q_rms_norm = HeadNorm(config.heads, config.head_dim)
        self.k_rms_norm = HeadNorm(config.heads, config.head_dim)
        self.to_out = nn.Linear(config.width, config.width)

    def forward(self, hidden: Tensor, latent: Tensor) -> Tensor:
        """Maps (B, N, C) and the latent (B, L, latent channels) to (B, N, C)."""
        query = self.to_q(hidden).unflatten(-1, (self.heads, -1))
        key, value = self.to_kv(latent).unflatten(-1, (2, self.heads, -1)).unbind(-3)
        attended = self.attend(self.q_rms_norm(query), self.k_rms_norm(key), value)
        out: Tensor = self.to_out(attended)
        return out


def sample_points(network: OctreeDecoder, latent: Tensor, count: int, uniform: Uniform) -> Tensor:
    """Draws points from a latent, coarse cells first.

    Args:
        network: Whose config says how many levels there are.
        latent: (1, L, latent channels) on the network's device.
        count: N, how many points; at least 1.
        uniform: Asked once per level for one number per occupied cell, and at the end for (N, 3).

    Returns:
        (N, 3) float32 in 0..1, ordered by cell.
    """
    device = latent.device
    offsets = torch.tensor([[c & 1, c >> 1 & 1, c >> 2] for c in range(8)], device=device)
    cells = torch.zeros(1, 3, dtype=torch.int64, device=device)
    counts = torch.full((1,), count, device=device)
    for level in range(network.config.levels):
        centres = (cells + 0.5) / 2**level
        resolution = torch.full((1,), 2 ** (level + 1), device=device)
        logits = network(centres[None], resolution, latent)[0]
        numbers = uniform(len(cells)).to(device)
        dealt = resample(logits.softmax(dim=-1), counts, numbers, points=count)
        parents, children = dealt.nonzero(as_tuple=True)
        cells = 2 * cells[parents] + offsets[children]
        counts = dealt[parents, children]
    cells = cells.repeat_interleave(counts, dim=0, output_size=count)
    points: Tensor = (cells + uniform(count, 3).to(device)) / 2**network.config.levels
    return points


def resample(
    probabilities: Tensor, counts: Tensor, uniform: Tensor, *, points: int | None = None
) -> Tensor:
    """Deals out the points of cells to their children by systematic resampling.

    One random number shifts a comb of n teeth, so that a child's share is off by less than one
    point.

    Args:
        probabilities: (M, 8) float32; a row of zeros counts as uniform.
        counts: (M,) int64, points of each cell.
        uniform: (M,) float32 in 0..1.
        points: The sum of the counts, which saves waiting for the device to compute it.

    Returns:
        (M, 8) int64; the rows sum to the counts.
    """
    total = probabilities.sum(dim=-1, keepdim=True)
    probabilities = torch.where(total > 0, probabilities / total.clamp_min(1), 1 / 8)
    limits = probabilities.cumsum(dim=-1)
    # One row per point: its cell, and its place among the points of that cell.
    cells = torch.arange(len(counts), device=counts.device)
    cells = cells.repeat_interleave(counts, output_size=points)
    places = torch.arange(len(cells), device=counts.device) - (counts.cumsum(0) - counts)[cells]
    number = counts[cells].float()
    teeth = uniform[cells] / number + places.float() / number
    children = (limits[cells] < teeth[:, None]).sum(dim=-1).clamp_max(7)
    dealt = counts.new_zeros(8 * len(counts))
    return dealt.index_add_(0, 8 * cells + children, torch.ones_like(cells)).view(-1, 8)
