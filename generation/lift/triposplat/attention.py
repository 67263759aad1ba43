"""What the three networks share: attention with normalised heads, and the feed-forward network."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadNorm(nn.Module):
    """Brings the query or key of each head to length sqrt(d), times a learned gain per channel."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., H, d) of any number format to float32."""
        gain = self.gamma.float() * math.sqrt(self.gamma.shape[-1])
        return F.normalize(hidden.float(), dim=-1) * gain


class Mlp(nn.Module):
    """Linear layers with an activation between them: GELU in its tanh form if none is named."""

    def __init__(self, sizes: Sequence[int], activation: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.mlp = nn.Sequential()
        for size_in, size_out in pairwise(sizes):
            if self.mlp:
                self.mlp.append(activation() if activation else nn.GELU(approximate="tanh"))
            self.mlp.append(nn.Linear(size_in, size_out))

    def forward(self, hidden: Tensor) -> Tensor:
        """Maps (..., first size) to (..., last size)."""
        out: Tensor = self.mlp(hidden)
        return out


class Repeated(NamedTuple):
    """A key that takes the place of several keys that are equal, and whose values are equal too.

    Attributes:
        place: Its index among the keys.
        times: How many it counts for.
    """

    place: int
    times: int


Attend = Callable[..., Tensor]
"""Takes and returns what `attend` does."""


def attend(query: Tensor, key: Tensor, value: Tensor, repeated: Repeated | None = None) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017).

    Args:
        query: (B, N, H, d), computed in float32.
        key: (B, M, H, d), the same.
        value: (B, M, H, d), whose number format the attention takes.
        repeated: A key that counts several times, if any; the attention is computed in float32
            then, because 16 bits round the logarithm of a count by up to 1 %.

    Returns:
        (B, N, H * d) in the values' number format.
    """
    dtype, mask = value.dtype, None
    if repeated is not None:
        value = value.float()
        # e^(score + log n) = n e^score
        mask = value.new_zeros(key.shape[1])
        # Not an assignment, which copies the number from the host; a CUDA graph cannot record that.
        mask[repeated.place].fill_(math.log(repeated.times))
        mask = mask[None, None, None]
    query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).to(dtype)


def norm(hidden: Tensor, eps: float) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(hidden, hidden.shape[-1:], eps=eps)


def modulate(hidden: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Layer norm whose gain and bias come from outside (Peebles and Xie 2023).

    Args:
        hidden: (B, N, C).
        shift: (B, 1, C).
        scale: (B, 1, C); 0 leaves the norm as it is.
        eps: Of the norm.
    """
    return norm(hidden, eps) * (1 + scale) + shift


def modulated_block(
    hidden: Tensor,
    parts: Sequence[Tensor],
    eps: float,
    attention: Callable[[Tensor], Tensor],
    feed_forward: Callable[[Tensor], Tensor],
) -> Tensor:
    """Adds attention and feed-forward, each behind a modulated norm and a gate.

    Args:
        hidden: (B, N, C).
        parts: (B, 1, C) each: shift, scale and gate of the attention, then of the feed-forward.
        eps: Of both norms.
        attention: Maps (B, N, C) to (B, N, C).
        feed_forward: The same.
    """
    shift, scale, gate = parts[:3]
    hidden = hidden + gate * attention(modulate(hidden, shift, scale, eps))
    shift, scale, gate = parts[3:]
    return hidden + gate * feed_forward(modulate(hidden, shift, scale, eps))


def linear_in_float32(layer: nn.Linear, hidden: Tensor) -> Tensor:
    """Applies a last layer in float32, in every number format of its weights."""
    return F.linear(hidden.float(), layer.weight.float(), layer.bias.float())
