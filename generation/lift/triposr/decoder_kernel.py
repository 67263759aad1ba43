"""The Triton kernel of `fused.FusedDecoder`: points in, raw density and colour out.

Importing this file needs Triton, which only torch's builds for CUDA bring along.
"""

# Triton's language is neither typed nor in lower case.
# mypy: ignore-errors
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def _plane_term(table, u, v, column, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    across = ((u + 1.0) * SIZE - 1.0) * 0.5
    down = ((v + 1.0) * SIZE - 1.0) * 0.5
    left = tl.floor(across)
    top = tl.floor(down)
    right_share = across - left
    lower_share = down - top
    x = left.to(tl.int32)
    y = top.to(tl.int32)
    total = tl.zeros([u.shape[0], WIDTH], tl.float32)
    for corner in tl.static_range(4):
        texel_x = x + corner % 2
        texel_y = y + corner // 2
        share_x = right_share if corner % 2 else 1.0 - right_share
        share_y = lower_share if corner // 2 else 1.0 - lower_share
        inside = (texel_x >= 0) & (texel_x < SIZE) & (texel_y >= 0) & (texel_y < SIZE)
        row = tl.where(inside, texel_y * SIZE + texel_x, 0)
        weight = tl.where(inside, share_x * share_y, 0.0)
        total += weight[:, None] * tl.load(table + row[:, None] * WIDTH + column[None, :])
    return total


# Without this, the kernel is compiled again for each kind of number of points.
@triton.jit(do_not_specialize=["count"])
def decode(
    points,
    terms,
    first_bias,
    weights,
    biases,
    last_weight,
    last_bias,
    out,
    count,
    scale,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    LAYERS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes `BLOCK` points through the decoder; hidden values never leave the registers.

    Args:
        points: (count, 3) float32 world x y z.
        terms: (3, SIZE, SIZE, WIDTH) float32, the planes behind the first linear layer.
        first_bias: (WIDTH,) float32 of that layer.
        weights: (LAYERS, WIDTH, WIDTH), [in][out], of the layers between the first and the last.
        biases: (LAYERS, WIDTH) float32.
        last_weight: (4, WIDTH) float32.
        last_bias: (4,) float32.
        out: (count, OUTPUTS) float32: the first of raw density, red, green, blue.
        count: Number of points.
        scale: World coordinates times this are -1..1 inside the cube.
        SIZE: Texels along a side of a plane.
        WIDTH: Of the hidden layers; a power of two, 16 at least.
        LAYERS: Linear layers between the first and the last.
        OUTPUTS: 1 or 4.
        BLOCK: A power of two, 16 at least.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < count
    x = tl.load(points + 3 * rows, mask=there, other=0.0) * scale
    y = tl.load(points + 3 * rows + 1, mask=there, other=0.0) * scale
    z = tl.load(points + 3 * rows + 2, mask=there, other=0.0) * scale
    column = tl.arange(0, WIDTH)
    plane = SIZE * SIZE * WIDTH
    hidden = _plane_term(terms, x, y, column, SIZE, WIDTH)
    hidden += _plane_term(terms + plane, x, z, column, SIZE, WIDTH)
    hidden += _plane_term(terms + 2 * plane, y, z, column, SIZE, WIDTH)
    hidden += tl.load(first_bias + column)[None, :]
    for layer in range(LAYERS):
        matrix = weights + layer * WIDTH * WIDTH
        weight = tl.load(matrix + column[:, None] * WIDTH + column[None, :])
        bias = tl.load(biases + layer * WIDTH + column)
        active = hidden * tl.sigmoid(hidden)
        # As the sum of two numbers of 16 bits, an activation keeps nearly all of its bits.
        high = active.to(weight.dtype)
        low = (active - high.to(tl.float32)).to(weight.dtype)
        hidden = tl.dot(low, weight, tl.dot(high, weight)) + bias[None, :]
    hidden = hidden * tl.sigmoid(hidden)
    for output in tl.static_range(OUTPUTS):
        weight = tl.load(last_weight + output * WIDTH + column)
        value = tl.sum(hidden * weight[None, :], axis=1) + tl.load(last_bias + output)
        tl.store(out + rows * OUTPUTS + output, value, mask=there)
