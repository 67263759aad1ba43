"""The flow transformer: the velocity of a latent, given the features of a picture.

Latent and picture tokens are refined apart, then attend to each other in the joint blocks. In
every block a small network computes positions of each token per head, and queries and keys are
rotated by them (rotary positions, Su et al. 2021, here learned). One modulation by the time serves
the whole network; a block adds a table of its own to it. Source: the public facts of
TripoSplat (VAST 2026). Attribute names are the checkpoint's keys.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposplat.attention import (
    Attend,
    HeadNorm,
    Mlp,
    Repeated,
    attend,
    modulate,
    modulated_block,
)
from generation.lift.triposplat.config import FlowConfig
from generation.lift.triposplat.tables import sinusoid, sobol_table

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (B, N, H, d / 2), float32."""


class Refined(NamedTuple):
    """What a pass computes before it looks at the condition.

    Attributes:
        latent: (B, L, C) refined tokens.
        camera: (B, 1, C) token.
        embedded: (B, C) time.
        modulation: (B, 6C) of the blocks, by the time.
    """

    latent: Tensor
    camera: Tensor
    embedded: Tensor
    modulation: Tensor


class FlowTransformer(nn.Module):
    """The network. Weights may be float32, bfloat16 or float16."""

    positions: Tensor

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.shift_table = nn.Parameter(torch.zeros(1, 2, width))
        self.t_embedder = Mlp([config.time_sinusoid.size, width, width], nn.SiLU)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.input_layer = nn.Linear(config.latent_channels, width)
        self.cond_embedder = nn.Linear(config.condition_channels_dino, width)
        self.cond_embedder2 = nn.Linear(config.condition_channels_vae, width)
        refiners, joint = config.refiner_blocks, config.joint_blocks
        self.noise_repo_layers = nn.ModuleList(LearnedRotary(config) for _ in range(refiners))
        self.context_repo_layers = nn.ModuleList(LearnedRotary(config) for _ in range(refiners))
        self.repo_layers = nn.ModuleList(LearnedRotary(config) for _ in range(joint))
        self.noise_refiner = nn.ModuleList(ModulatedBlock(config) for _ in range(refiners))
        self.context_refiner = nn.ModuleList(ContextBlock(config) for _ in range(refiners))
        self.cam_refiner = Mlp([config.camera_channels] + [width] * config.camera_mlp_layers)
        self.blocks = nn.ModuleList(ModulatedBlock(config) for _ in range(joint))
        self.out_layer = nn.Linear(width, config.latent_channels)
        self.cam_out_layer = nn.Linear(width, config.camera_channels)
        # Not in the checkpoint, and on the CPU even when the network is built on `meta`.
        places = config.positions
        _, table = sobol_table(config.latent_tokens, width, places.seed, places.octaves)
        self.register_buffer("positions", table, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.shift_table.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.shift_table.dtype

    def condition(self, feature1: Tensor, feature2: Tensor) -> Tensor:
        """Computes the tokens of a picture, which do not depend on the time.

        Args:
            feature1: (B, M, DINO channels); zeros, like `feature2`, for no condition.
            feature2: (B, M, VAE channels).

        Returns:
            (B, M, C) in the network's number format.
        """
        tokens: Tensor = self.cond_embedder(feature1.to(self.dtype))
        tokens = tokens + self.cond_embedder2(feature2.to(self.dtype))
        for rotary, block in zip(self.context_repo_layers, self.context_refiner, strict=True):
            tokens = block(tokens, rotary)
        return tokens

    def forward(
        self, latent: Tensor, camera: Tensor, time: Tensor, condition: Tensor, copies: int = 1
    ) -> tuple[Tensor, Tensor]:
        """Computes the velocities of latent and camera.

        Args:
            latent: (B, L, latent channels), L at most the config's `latent_tokens`.
            camera: (B, 1, camera channels).
            time: (B,) float32, 1000 x the time in 0..1.
            condition: (B, M, C), see `condition`.
            copies: Of a single token of the condition, how many equal ones it counts for. Equal
                tokens remain equal in every block, so one is enough.

        Returns:
            Of the shapes of `latent` and `camera`, in the network's number format.
        """
        return self.join(self.refine(latent, camera, time), condition, copies)

    def velocities(
        self,
        latent: Tensor,
        camera: Tensor,
        time: Tensor,
        condition: Tensor,
        empty: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Computes the velocities under classifier-free guidance (Ho and Salimans 2022).

        Args:
            latent: See `forward`.
            camera: See `forward`.
            time: See `forward`.
            condition: See `forward`.
            empty: (1, 1, C), one of the equal tokens of no picture; no guidance if None.
            guidance: () float32; more than 1 leads away from the empty condition.

        Returns:
            Of the shapes of `latent` and `camera`, float32.
        """
        refined = self.refine(latent, camera, time)
        towards = [part.float() for part in self.join(refined, condition)]
        if empty is None or guidance is None:
            return towards[0], towards[1]
        without = self.join(refined, empty.expand(len(latent), -1, -1), condition.shape[1])
        first, second = (
            guidance * with_it - (guidance - 1) * part.float()
            for with_it, part in zip(towards, without, strict=True)
        )
        return first, second

    def refine(self, latent: Tensor, camera: Tensor, time: Tensor) -> Refined:
        """Computes what does not depend on the condition; see `forward`."""
        embedded = self.t_embedder(sinusoid(time, self.config.time_sinusoid).to(self.dtype))
        modulation = self.adaLN_modulation(embedded)
        tokens = self.input_layer(latent.to(self.dtype)) + self.positions[: latent.shape[1]]
        for rotary, block in zip(self.noise_repo_layers, self.noise_refiner, strict=True):
            tokens = block(tokens, rotary, modulation)
        return Refined(tokens, self.cam_refiner(camera.to(self.dtype)), embedded, modulation)

    def join(self, refined: Refined, condition: Tensor, copies: int = 1) -> tuple[Tensor, Tensor]:
        """Computes the velocities of what has been refined; see `forward`."""
        latent, camera, embedded, modulation = refined
        count = latent.shape[1]
        repeated = Repeated(count, copies) if copies > 1 else None
        tokens = torch.cat([latent, condition, camera], dim=1)
        for rotary, block in zip(self.repo_layers, self.blocks, strict=True):
            tokens = block(tokens, rotary, modulation, repeated)

        shift, scale = (self.shift_table + embedded[:, None]).chunk(2, dim=1)
        ends = torch.cat([tokens[:, :count], tokens[:, -1:]], dim=1)
        ends = modulate(ends, shift, scale, self.config.final_norm_eps)
        return self.out_layer(ends[:, :count]), self.cam_out_layer(ends[:, count:])


class LearnedRotary(nn.Module):
    """Gives every token a place in space for each head, and turns the places into rotations."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.heads = config.heads
        for axis, count in enumerate(config.rotary_frequencies):
            frequencies = torch.linspace(1.0, config.rotary_max_frequency, count)
            self.register_parameter(f"freqs_{axis}", nn.Parameter(frequencies))
        self.norm = nn.LayerNorm(config.width, eps=config.rotary_norm_eps)
        self.gate_map = nn.Linear(config.width, config.rotary_hidden, bias=False)
        self.content_map = nn.Linear(config.width, config.rotary_hidden, bias=False)
        self.final_map = nn.Linear(config.rotary_hidden, 3 * config.heads, bias=False)

    def forward(self, tokens: Tensor) -> Rotation:
        """Maps the tokens (B, N, C) that enter a block to its rotation."""
        hidden = self.norm(tokens)
        hidden = F.silu(self.gate_map(hidden)) * self.content_map(hidden)
        # Angles lose up to 0.14 in bfloat16.
        places = self.final_map(hidden).float().unflatten(-1, (self.heads, 3))
        frequencies = [getattr(self, f"freqs_{axis}").float() for axis in range(3)]
        turns = [places[..., axis, None] * frequencies[axis] for axis in range(3)]
        angles = torch.cat(turns, dim=-1) * math.pi
        return angles.cos(), angles.sin()


def rotate(hidden: Tensor, rotation: Rotation) -> Tensor:
    """Rotates neighbouring channels (2i, 2i + 1) of (B, N, H, d) by angle i, in float32."""
    cosine, sine = rotation
    even, odd = torch.unflatten(hidden.float(), -1, (-1, 2)).unbind(-1)
    turned = (even * cosine - odd * sine, even * sine + odd * cosine)
    return torch.stack(turned, dim=-1).flatten(-2)


class RotaryAttention(nn.Module):
    """Self-attention; queries and keys are rotated first, then normalised."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.attend: Attend = attend
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm = HeadNorm(config.heads, config.head_dim)
        self.k_norm = HeadNorm(config.heads, config.head_dim)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, tokens: Tensor, rotation: Rotation, repeated: Repeated | None = None
    ) -> Tensor:
        """Maps (B, N, C) to (B, N, C); see `attend`."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query = self.q_norm(rotate(query, rotation))
        key = self.k_norm(rotate(key, rotation))
        out: Tensor = self.out(self.attend(query, key, value, repeated))
        return out


class ModulatedBlock(nn.Module):
    """Self-attention and feed-forward, both shifted, scaled and gated by the time."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.eps = config.block_norm_eps
        self.shift_table = nn.Parameter(torch.zeros(1, 6 * config.width))
        self.attn = RotaryAttention(config)
        self.mlp = Mlp([config.width, config.mlp_ratio * config.width, config.width])

    def forward(
        self,
        tokens: Tensor,
        rotary: LearnedRotary,
        modulation: Tensor,
        repeated: Repeated | None = None,
    ) -> Tensor:
        """Maps tokens (B, N, C) and the network's modulation (B, 6C) to (B, N, C)."""
        rotation = rotary(tokens)
        parts = (modulation + self.shift_table)[:, None].chunk(6, dim=-1)
        return modulated_block(
            tokens, parts, self.eps, lambda normed: self.attn(normed, rotation, repeated), self.mlp
        )


class ContextBlock(nn.Module):
    """Self-attention and feed-forward with norms of their own; the time plays no part."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.block_norm_eps)
        self.norm2 = nn.LayerNorm(config.width, eps=config.block_norm_eps)
        self.attn = RotaryAttention(config)
        self.mlp = Mlp([config.width, config.mlp_ratio * config.width, config.width])

    def forward(self, tokens: Tensor, rotary: LearnedRotary) -> Tensor:
        """Maps (B, M, C) to (B, M, C)."""
        tokens = tokens + self.attn(self.norm1(tokens), rotary(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out
