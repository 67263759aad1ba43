"""The backbone: a transformer over triplane tokens that looks at the image tokens.

Source: TripoSR (Tochilkin et al. 2024), after LRM (Hong et al. 2023). Attribute names are the
checkpoint's keys, which follow the transformer blocks of the diffusers library.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from generation.lift.triposr.attention import multi_head_attention
from generation.lift.triposr.config import TripoSRConfig


class Backbone(nn.Module):
    """Refines triplane tokens by self-attention and cross-attention to the image."""

    def __init__(self, config: TripoSRConfig) -> None:
        super().__init__()
        channels = config.num_channels
        width = config.num_attention_heads * config.attention_head_dim
        self.norm = nn.GroupNorm(32, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, config.vit.hidden_size, config.num_attention_heads)
            for _ in range(config.num_layers)
        )
        self.proj_out = nn.Linear(width, channels)

    def forward(self, tokens: Tensor, image_tokens: Tensor) -> Tensor:
        """Refines the tokens.

        Args:
            tokens: (B, channels, N) raw triplane tokens, all three planes.
            image_tokens: (B, M, vit hidden).

        Returns:
            (B, channels, N).
        """
        hidden = self.proj_in(self.norm(tokens).transpose(1, 2))
        for block in self.transformer_blocks:
            hidden = block(hidden, image_tokens)
        out: Tensor = self.proj_out(hidden).transpose(1, 2)
        return out + tokens


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normed and added back."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, context_width, heads)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, hidden: Tensor, image_tokens: Tensor) -> Tensor:
        """Maps hidden (B, N, width) and image tokens (B, M, context) to (B, N, width)."""
        normed = self.norm1(hidden)
        hidden = hidden + self.attn1(normed, normed)
        hidden = hidden + self.attn2(self.norm2(hidden), image_tokens)
        out: Tensor = hidden + self.ff(self.norm3(hidden))
        return out


class Attention(nn.Module):
    """Multi-head attention; only the output projection has a bias."""

    def __init__(self, width: int, context_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))

    def forward(self, hidden: Tensor, context: Tensor) -> Tensor:
        """Maps hidden (B, N, width) and context (B, M, context width) to (B, N, width)."""
        attended = multi_head_attention(
            self.to_q(hidden), self.to_k(context), self.to_v(context), self.heads
        )
        out: Tensor = self.to_out(attended)
        return out


class FeedForward(nn.Module):
    """Gated feed-forward network, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The checkpoint counts a dropout between the two layers.
        self.net = nn.Sequential(
            GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (B, N, width) to (B, N, width)."""
        out: Tensor = self.net(hidden)
        return out


class GEGLU(nn.Module):
    """Gated linear unit with exact GELU (Shazeer 2020): the second half gates the first."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width_out)

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., width_in) to (..., width_out)."""
        value, gate = self.proj(hidden).chunk(2, dim=-1)
        gated: Tensor = value * F.gelu(gate)
        return gated
