"""Linear layers whose bfloat16 weights take 12 bits and keep their values."""

import torch
from torch import Tensor, nn

from generation.acceleration.eight_bit import NarrowLinear


class TwelveBitLinear(NarrowLinear):
    """A linear layer that holds bfloat16 weights in 12 bits: sign, 4 bits of exponent, mantissa.

    The weights of an output differ little in size, so of the 8 bits of their exponents 4 are
    enough, counted down from the largest: a weight keeps its value, unless it is smaller than the
    largest of its output by a factor of more than 2 ** 14. Such a one becomes zero.

    The weights are widened before each product. Compiled, that is one kernel, which reads 12 bits
    and writes 16; the memory it writes to is free again after the product.

    Args:
        linear: The layer to replace; only its values are used. Weights of other types are rounded
            to bfloat16. The number of inputs must be even.
        device: Where the weights go.
    """

    high: Tensor
    low: Tensor
    offset: Tensor

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__(linear, device)
        weight = linear.weight.detach().to(device, torch.bfloat16)
        for name, part in zip(("high", "low", "offset"), _pack(weight), strict=True):
            self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features) of the same type."""
        return nn.functional.linear(x, self.widened().to(x.dtype), self.bias)

    def widened(self) -> Tensor:
        """Returns the weights (out_features, in_features), bfloat16."""
        low = torch.cat([self.low & 15, self.low >> 4], dim=1)
        code = (self.high.int() << 4) | low
        magnitude = code & 0x7FF
        bits = torch.where(magnitude >= 128, magnitude + self.offset[:, None], 0)
        return (bits | ((code & 0x800) << 4)).to(torch.int16).view(torch.bfloat16)


def _pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes bfloat16 weights (N, K) apart.

    Returns:
        (N, K) uint8: the upper 8 of the 12 bits. (N, K / 2) uint8: the lower 4 of column k, and
        above them those of column k + K / 2. (N,) int32: what brings the bits of a magnitude back
        to those of bfloat16.
    """
    bits = weight.view(torch.int16).int()
    magnitude = bits & 0x7FFF
    largest = magnitude.amax(dim=1) >> 7
    offset = (largest - 15).clamp_min(0) << 7
    magnitude = magnitude - offset[:, None]
    code = torch.where(magnitude >= 128, magnitude, 0) | ((bits & 0x8000) >> 4)
    first, second = (code & 15).chunk(2, dim=1)
    return (code >> 4).byte(), (first | (second << 4)).byte(), offset
