"""Linear layers whose weights take 8 bits instead of 16, and what puts narrow layers in place."""

import torch
from loguru import logger
from torch import Tensor, nn

from generation.recovery import is_of_device

_E4M3 = torch.float8_e4m3fn
_E4M3_LARGEST = 448.0
"""The largest value of e4m3 (Micikevicius et al. 2022, "FP8 Formats for Deep Learning")."""

_TILE = 16
"""Rows and columns of a weight must be multiples of this for the scaled product."""


class NarrowLinear(nn.Module):
    """A linear layer that holds its weights in fewer than 16 bits.

    Args:
        linear: The layer to replace; only its values are used.
        device: Where the weights go.
    """

    weight = None
    """Transformers reads this to learn the type that a layer wants its input in: any."""

    bias: Tensor | None

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        bias = None if linear.bias is None else linear.bias.detach().to(device)
        self.register_buffer("bias", bias)

    def extra_repr(self) -> str:
        """The shape, as `nn.Linear` prints it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Float8Linear(NarrowLinear):
    """e4m3 weights with one scale for each output, multiplied with inputs that are rounded to e4m3.

    The inputs have one scale a token. Where the device has no such product, the weights are widened
    for each one, and the inputs are not rounded.
    """

    quantised: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, device: torch.device | str) -> None:
        super().__init__(linear, device)
        weight = linear.weight.detach().to(device).float()
        scale = (weight.abs().amax(dim=1, keepdim=True) / _E4M3_LARGEST).clamp_min(1e-12)
        self.register_buffer("quantised", (weight / scale).to(_E4M3))
        self.register_buffer("scale", scale.T.contiguous())
        self._fast = has_scaled_product(self.quantised.device)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., in_features) to (..., out_features); bfloat16 where the fast product is."""
        if not self._fast:
            # Row by row the scale is one factor, so it can wait until after the product.
            product = nn.functional.linear(x, self.quantised.to(x.dtype)) * self.scale.to(x.dtype)
            return product if self.bias is None else product + self.bias
        tokens = x.reshape(-1, self.in_features)
        largest = tokens.abs().amax(dim=1, keepdim=True).float()
        scale = (largest / _E4M3_LARGEST).clamp_min(1e-12)
        product = torch._scaled_mm(
            (tokens / scale).to(_E4M3),
            self.quantised.T,
            scale_a=scale,
            scale_b=self.scale,
            bias=self.bias,
            out_dtype=x.dtype,
            use_fast_accum=True,
        )
        return product.view(*x.shape[:-1], self.out_features)


def quantise(
    module: nn.Module,
    layer: type[NarrowLinear],
    *,
    device: torch.device | str,
    smallest: int = 1024 * 1024,
) -> int:
    """Replaces every large `nn.Linear` inside a module; only those are moved to the device.

    Args:
        module: Changed in place, one layer at a time, so that the wide weights never have to be on
            the device together.
        layer: What takes their place.
        device: Where the narrow weights go.
        smallest: Fewest weights of a layer that is replaced; the rest take little memory.

    Returns:
        How many layers were replaced.
    """
    replaced = 0
    for parent in list(module.modules()):
        for name, linear in list(parent.named_children()):
            if not isinstance(linear, nn.Linear) or linear.weight.numel() < smallest:
                continue
            if linear.in_features % _TILE or linear.out_features % _TILE:
                continue
            setattr(parent, name, layer(linear, device))
            replaced += 1
    return replaced


_products: dict[torch.device, bool] = {}


def has_scaled_product(device: torch.device) -> bool:
    """Whether the device multiplies e4m3 matrices with a scale for each row (found by trying)."""
    if device not in _products:
        _products[device] = device.type == "cuda" and _try_scaled_product(device)
        if device.type == "cuda" and not _products[device]:
            logger.warning("{} has no product of 8-bit floats: they save memory, not time", device)
    return _products[device]


def _try_scaled_product(device: torch.device) -> bool:
    values = torch.ones(_TILE, _TILE, device=device).to(_E4M3)
    scale = torch.ones(_TILE, 1, device=device)
    try:
        torch._scaled_mm(values, values.T, scale_a=scale, scale_b=scale.T, out_dtype=torch.bfloat16)
    except RuntimeError as error:
        if is_of_device(error):
            raise
        return False
    return True
