"""Attention by one of torch's CUDA kernels, and keys that count for several, without a mask.

Torch masks scores only in its slower kernels. The faster ones return the log-sum-exp of the scores
as well, with which further copies of a key are added afterwards, exactly.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from loguru import logger
from torch import Tensor

from generation.lift.triposplat.attention import Attend, Repeated, attend
from generation.recovery import is_of_device

Kernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps query (B, H, N, d), key and value (B, H, M, d) of 16 bits to what they attend to, as the
query, and to the log-sum-exp of the scores, B x H x N float32."""

_HOPPER = (9, 0)
_TOLERANCE = 2e-2
"""Between two ways of attending in bfloat16, whose values are of size 1."""


def cudnn(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The kernel of cuDNN; see `Kernel`."""
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(query, key, value, None, True)
    return found[0], found[1]


def flash(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 (Dao 2023), which torch brings along; see `Kernel`."""
    found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)
    return found[0], found[1]


@lru_cache
def best_attention(heads: int, head_dim: int, device: torch.device, dtype: torch.dtype) -> Attend:
    """Returns the fastest way of attending that this device and this torch have.

    A kernel is taken if it finds what `attention.attend` finds, which is tried with few tokens.
    Without one, that is `attention.attend` itself, and off CPUs a warning says so.

    Args:
        heads: H.
        head_dim: d.
        device: Where the tensors are.
        dtype: Of values.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return attend
    # cuDNN's kernel is written for Hopper and newer.
    newer = torch.cuda.get_device_capability(device) >= _HOPPER
    for kernel in (cudnn, flash) if newer else (flash, cudnn):
        if is_right(kernel, heads, head_dim, device, dtype):
            return attend_by(kernel)
    logger.warning(
        "TripoSplat attends more slowly: torch {} has no kernel for {} that returns the "
        "log-sum-exp of the scores",
        torch.__version__,
        torch.cuda.get_device_name(device),
    )
    return attend


def attend_by(kernel: Kernel) -> Attend:
    """Makes a way of attending of a kernel."""

    def attend_fast(
        query: Tensor, key: Tensor, value: Tensor, repeated: Repeated | None = None
    ) -> Tensor:
        query, key, value = (x.to(value.dtype).transpose(1, 2) for x in (query, key, value))
        attended, log_sum = kernel(query, key, value)
        if repeated is not None:
            log_sum = log_sum.reshape(query.shape[:3])
            attended = with_copies(attended, log_sum, query, key, value, repeated)
        return attended.transpose(1, 2).flatten(2)

    return attend_fast


def with_copies(
    attended: Tensor, log_sum: Tensor, query: Tensor, key: Tensor, value: Tensor, repeated: Repeated
) -> Tensor:
    """Adds further copies of a key to an attention that has counted it once.

    Args:
        attended: (B, H, N, d).
        log_sum: (B, H, N) float32, log-sum-exp of the scores of all keys.
        query: (B, H, N, d).
        key: (B, H, M, d).
        value: (B, H, M, d).
        repeated: Which key, and how often it counts in all; at least twice.
    """
    place = slice(repeated.place, repeated.place + 1)
    score = (query.float() * key[:, :, place].float()).sum(dim=-1) / math.sqrt(query.shape[-1])
    # The copies' share of the softmax: n e^score / (n e^score + the sum so far).
    share = torch.sigmoid(score + math.log(repeated.times - 1) - log_sum)[..., None]
    return torch.lerp(attended.float(), value[:, :, place].float(), share).to(attended.dtype)


def is_right(
    kernel: Kernel, heads: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> bool:
    """Whether a kernel exists for these sizes and finds what `attention.attend` finds."""
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = torch.randn(
        3, 1, 80, heads, head_dim, device=device, generator=generator
    ).to(dtype)
    try:
        return all(
            torch.allclose(
                attend_by(kernel)(query, key, value, repeated).float(),
                attend(query.float(), key.float(), value.float(), repeated),
                rtol=0,
                atol=_TOLERANCE,
            )
            for repeated in (None, Repeated(71, 1000))
        )
    except (AttributeError, TypeError, RuntimeError) as error:  # Another torch, or another device.
        if is_of_device(error):
            raise
        return False
