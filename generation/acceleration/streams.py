"""CUDA streams of threads that share a device."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_host(tensor: Tensor) -> NDArray[Any]:
    """Copies a tensor to main memory once it is computed.

    The wait comes first and the copy second: a copy that waits in the device's queue holds up the
    copies of other streams behind it.
    """
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    found: NDArray[Any] = tensor.cpu().numpy()
    return found


def go_first(device: str) -> None:
    """Lets the kernels of this thread start before those that other threads have waiting.

    Does nothing where torch finds no CUDA device.

    Args:
        device: A CUDA device, in torch's words.
    """
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]
