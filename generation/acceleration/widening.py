"""A matrix product in Triton that widens 12-bit weights on their way to the tensor cores."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_CONFIGS = [
    triton.Config({"block_n": n, "block_m": m, "block_k": k}, warps, stages)
    for n, m, k, warps, stages in (
        (64, 64, 64, 4, 4),
        (64, 128, 64, 4, 3),
        (128, 128, 64, 8, 3),
        (128, 128, 32, 8, 4),
        (128, 256, 32, 8, 3),
    )
]


def product(x: Tensor, high: Tensor, low: Tensor, offset: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies tokens with weights in 12 bits, adding up in float32.

    Args:
        x: (M, K) bfloat16, contiguous; K is a multiple of 128.
        high: (N, K) uint8; N is a multiple of 128. See `twelve_bit` for this and the next two.
        low: (N, K / 2) uint8.
        offset: (N,) int32.
        bias: (N,), or None.

    Returns:
        (M, N) bfloat16.
    """
    (tokens, inputs), outputs = x.shape, len(high)
    y = x.new_empty(tokens, outputs)

    def grid(config: Any) -> tuple[int, int]:
        return outputs // config["block_n"], triton.cdiv(tokens, config["block_m"])

    tuned_kernel[grid](x, high, low, offset, bias, y, tokens, outputs, inputs)
    return y


@triton.jit
def _widen(high, low, offset):  # type: ignore[no-untyped-def]
    code = (high.to(tl.int32) << 4) | low.to(tl.int32)
    magnitude = code & 0x7FF
    bits = tl.where(magnitude >= 128, magnitude + offset, 0) | ((code & 0x800) << 4)
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit  # type: ignore[untyped-decorator]
def kernel(  # type: ignore[no-untyped-def]
    x,
    high,
    low,
    offset,
    bias,
    y,
    tokens,
    outputs,
    inputs,
    block_n: tl.constexpr,
    block_m: tl.constexpr,
    block_k: tl.constexpr,
):
    """Computes one block of the transposed result: weights are the left operand."""
    n = tl.program_id(0) * block_n + tl.arange(0, block_n)
    m = tl.program_id(1) * block_m + tl.arange(0, block_m)
    k = tl.arange(0, block_k)
    half = inputs // 2
    inside = m < tokens
    added = tl.load(offset + n)[:, None]
    highs = high + n[:, None] * inputs + k[None, :]
    lows = low + n[:, None] * half + k[None, :]
    xs = x + m[None, :] * inputs + k[:, None]
    total = tl.zeros((block_n, block_m), dtype=tl.float32)
    for _ in range(0, half, block_k):
        packed = tl.load(lows)
        first = _widen(tl.load(highs), packed & 15, added)
        total = tl.dot(first, tl.load(xs, mask=inside[None, :], other=0.0), total)
        second = _widen(tl.load(highs + half), packed >> 4, added)
        total = tl.dot(second, tl.load(xs + half, mask=inside[None, :], other=0.0), total)
        highs += block_k
        lows += block_k
        xs += block_k
    if bias is not None:
        total += tl.load(bias + n).to(tl.float32)[:, None]
    tl.store(y + m[None, :] * outputs + n[:, None], total.to(y.dtype.element_ty), inside[None, :])


tuned_kernel = triton.autotune(_CONFIGS, key=["tokens", "outputs", "inputs"])(kernel)
