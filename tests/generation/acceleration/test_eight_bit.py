"""Narrow layers take less memory and stay close to what sixteen bits compute."""

import pytest
import torch
from torch import Tensor, nn

from generation.acceleration.eight_bit import Float8Linear, NarrowLinear, quantise
from generation.acceleration.twelve_bit import TwelveBitLinear

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)
# Of a product with normally distributed values: twelve bits only round the result to bfloat16, e4m3
# rounds weights, and on CUDA the inputs too, to 3 bits after the leading one.
ERRORS = {TwelveBitLinear: 0.003, Float8Linear: 0.045}


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value.float() - reference).norm() / reference.norm())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", [TwelveBitLinear, Float8Linear])
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_stays_close(kind: type[NarrowLinear], bias: bool, device: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 128, bias=bias).requires_grad_(False)
    layer = kind(linear.bfloat16(), device)
    x = torch.randn(2, 3, 256)
    y = layer(x.to(device, torch.bfloat16))
    assert (y.shape, y.dtype) == ((2, 3, 128), torch.bfloat16)
    assert _relative_error(y.cpu(), linear.float()(x)) < ERRORS[kind]


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("kind", [TwelveBitLinear, Float8Linear])
def test_outputs_and_tokens_of_any_scale_keep_their_precision(
    kind: type[NarrowLinear], device: str
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=False).requires_grad_(False)
    outputs, tokens = torch.logspace(-6, 3, 32), torch.tensor([1e-4, 1.0, 1e4, 0.0])
    linear.weight *= outputs[:, None]
    linear.weight[0] = 0
    x = torch.randn(4, 64) * tokens[:, None]
    y = kind(linear.bfloat16(), device)(x.to(device, torch.bfloat16)).float().cpu()
    assert torch.isfinite(y).all()
    assert y[3].abs().max() == 0
    assert y[:, 0].abs().max() == 0
    unit = tokens[:3, None] * outputs[1:]
    reference = linear.float()(x)[:3, 1:]
    assert _relative_error(y[:3, 1:] / unit, reference / unit) < ERRORS[kind]


def test_only_large_layers_of_fitting_shape_are_replaced() -> None:
    module = nn.ModuleDict(
        {
            "large": nn.Linear(64, 64),
            "small": nn.Linear(16, 16),
            "odd": nn.Linear(100, 100),
            "inside": nn.Sequential(nn.Linear(64, 64, bias=False), nn.LayerNorm(64)),
        }
    )
    assert quantise(module, TwelveBitLinear, device="cpu", smallest=64 * 64) == 2
    kinds = {name: type(layer) for name, layer in module.named_modules()}
    assert kinds["large"] is kinds["inside.0"] is TwelveBitLinear
    assert kinds["small"] is kinds["odd"] is nn.Linear


def test_a_layer_takes_half_of_the_memory() -> None:
    linear = nn.Linear(1024, 1024, dtype=torch.bfloat16)
    layer = Float8Linear(linear, "cpu")
    taken = sum(buffer.nbytes for buffer in layer.buffers())
    assert taken < 0.51 * sum(p.nbytes for p in linear.parameters())
    assert list(layer.parameters()) == []
