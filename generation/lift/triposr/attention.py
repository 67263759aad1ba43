"""Multi-head attention, shared by the image tokenizer and the backbone."""

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_head_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017) over `heads` equal slices of the channels.

    Args:
        query: (B, N, D).
        key: (B, M, D).
        value: (B, M, D).
        heads: Divides D; the scale is 1/sqrt(D / heads).

    Returns:
        (B, N, D).
    """
    query, key, value = (
        torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (query, key, value)
    )
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
