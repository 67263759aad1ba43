"""Random weights for networks of any size; each follows from its name alone."""

import weakref
import zlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Finish = Callable[[nn.Module], object]


@torch.no_grad()
def fill(
    network: nn.Module,
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    gains: Mapping[str, float] | None = None,
    finish: Finish | None = None,
) -> nn.Module:
    """Gives every parameter a value; returns the network in eval mode.

    Args:
        network: Its parameters may be on meta, its buffers must have their values.
        name: What the names of its weights begin with.
        device: Where the weights are drawn.
        dtype: Their number format.
        gains: Factors for the layers of these names.
        finish: Called with every block once it is filled, before the next is, and with the whole.
    """
    blocks = set(network._no_split_modules)  # type: ignore[arg-type]
    # Tied weights stay one; what 8 bits have replaced is let go.
    drawn = weakref.WeakValueDictionary[int, nn.Parameter]()

    def visit(module: nn.Module, path: str) -> None:
        for key, child in list(module.named_children()):
            visit(child, f"{path}.{key}")
        gain = (gains or {}).get(path.rpartition(".")[2], 1.0)
        for key, empty in list(module.named_parameters(recurse=False)):
            parameter = drawn.get(id(empty))
            if parameter is None:
                values = _draw(module, f"{path}.{key}", empty.shape, device, dtype)
                parameter = nn.Parameter(values.mul_(gain), requires_grad=False)
                drawn[id(empty)] = parameter
            setattr(module, key, parameter)
        if finish is not None and type(module).__name__ in blocks:
            finish(module)

    empty_parameters = list(network.parameters())  # Held, so that no id is given out twice.
    visit(network, name)
    del empty_parameters
    if finish is not None:
        finish(network)
    return network.eval()


def _draw(
    module: nn.Module, path: str, shape: torch.Size, device: torch.device, dtype: torch.dtype
) -> Tensor:
    values = torch.empty(shape, device=device, dtype=dtype)
    if len(shape) == 1:
        # Norms, and the biases of all.
        return values.fill_(1.0 if path.endswith("weight") else 0.0)
    # A layer keeps the scale of what passes through it.
    std = 1.0 if isinstance(module, nn.Embedding) else values[0].numel() ** -0.5
    generator = torch.Generator(device).manual_seed(zlib.crc32(path.encode()))
    return values.normal_(std=std, generator=generator)
