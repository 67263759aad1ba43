"""Twelve bits compute what bfloat16 computes."""

import copy

import pytest
import torch
from torch import Tensor, nn

from generation.acceleration.eight_bit import Float8Linear, quantise
from generation.acceleration.twelve_bit import TwelveBitLinear

needs_cuda = pytest.mark.cuda
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


def _heavy_tailed(*shape: int) -> Tensor:
    """Student's t with three degrees of freedom: a few values are 50 times the rest."""
    return torch.distributions.StudentT(3.0).sample(shape)


def _linear(inputs: int, outputs: int, *, bias: bool) -> nn.Linear:
    """Heavy-tailed weights, the rows of very different size, as a network's are."""
    torch.manual_seed(inputs + outputs)
    linear = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    linear.weight.copy_(_heavy_tailed(outputs, inputs) * torch.logspace(-3, 1, outputs)[:, None])
    return linear.bfloat16()


def _relative_error(value: Tensor, reference: Tensor) -> float:
    return float((value.cpu().double() - reference.cpu().double()).norm() / reference.norm())


@pytest.mark.parametrize("device", DEVICES)
def test_weights_keep_their_values_unless_they_are_tiny(device: str) -> None:
    linear = _linear(512, 256, bias=False)
    weight = linear.weight.float()
    weight[0, :4] = torch.tensor([0.0, -0.0, 1e30, -1e30])
    weight[1] = 0
    weight[2] = torch.finfo(torch.bfloat16).smallest_normal * torch.linspace(1, 2, 512)
    linear.weight.copy_(weight)
    weight = linear.weight.float()
    layer = TwelveBitLinear(linear, device)
    found = layer.widened().float().cpu()
    lost = found != weight
    assert (found[lost] == 0).all()
    assert (weight.abs() * lost <= weight.abs().amax(dim=1, keepdim=True) * 2.0**-14).all()
    assert lost[3:].float().mean() < 2e-3
    taken = sum(buffer.nbytes for buffer in layer.buffers())
    assert taken < 0.76 * linear.weight.nbytes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs"), [(1, 128, 128), (77, 256, 384), (256, 1024, 256), (5, 96, 40)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_the_product_is_bfloat16s(
    tokens: int, inputs: int, outputs: int, bias: bool, device: str
) -> None:
    linear = _linear(inputs, outputs, bias=bias)
    x = _heavy_tailed(2, tokens, inputs).bfloat16()
    y = TwelveBitLinear(linear, device)(x.to(device))
    exact = linear.double()(x.double())
    assert (y.shape, y.dtype) == ((2, tokens, outputs), torch.bfloat16)
    # The result is rounded to bfloat16 once, and no input or partial sum is.
    assert _relative_error(y, exact.bfloat16()) < 1e-3
    assert _relative_error(y, exact) < 3e-3


class _Deep(nn.Module):
    """Feed-forward layers, pre-normed and added back, in float32 with bfloat16's weights."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.ModuleList(nn.Linear(*sizes, bias=False) for _ in range(depth))
            for sizes in ((width, 2 * width), (2 * width, width))
        )
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.copy_((0.1 * _heavy_tailed(*parameter.shape)).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            normed = nn.functional.rms_norm(x, x.shape[-1:])
            x = x + second(nn.functional.gelu(first(normed)))
        return x


def test_a_deep_network_answers_as_with_weights_of_sixteen_bits() -> None:
    # In float32, so that nothing but the weights differs: through 24 layers in bfloat16 any
    # difference grows to two percent, which is how far they are from float32.
    torch.manual_seed(0)
    network = _Deep(depth=24, width=64)
    x = _heavy_tailed(48, 64)
    errors = []
    for kind in (TwelveBitLinear, Float8Linear):
        narrow = copy.deepcopy(network)
        assert quantise(narrow, kind, device="cpu", smallest=1024) == 2 * 24
        errors.append(_relative_error(narrow(x), network(x)))
    twelve, eight = errors
    assert twelve < 1e-3
    assert eight > 1e-2


@needs_cuda
def test_compiled_layers_need_no_more_than_one_widened_copy() -> None:
    layer = TwelveBitLinear(_linear(1024, 1024, bias=False), "cuda")
    layer.compile(fullgraph=True, dynamic=False)
    x = _heavy_tailed(256, 1024).bfloat16().cuda()
    layer(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = layer(x)
    wide = 2 * layer.in_features * layer.out_features
    assert torch.cuda.max_memory_allocated() - before <= y.nbytes + wide + 4096


@needs_cuda
def test_a_graph_of_the_product_computes_the_same() -> None:
    from generation.acceleration.graphs import Captured

    layer = TwelveBitLinear(_linear(256, 512, bias=True), "cuda")
    captured = Captured("twelve bits", layer.__call__)
    for _ in range(3):
        x = _heavy_tailed(100, 256).bfloat16().cuda()
        torch.testing.assert_close(captured(x), layer(x), rtol=0, atol=0)
    assert len(captured._recordings) == 1
