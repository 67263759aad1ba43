"""CUDA streams of threads that share a device.

CUDA knows a current device and a current stream per thread, and libraries fall back on them. An
engine may run on any device, so nothing here or elsewhere in `generation/` relies on the current
device: every stream is created, awaited and recorded on the device of the tensors.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_CORES = torch.get_num_threads()
"""Threads that torch took before any lane changed the number."""


def wait_for_stream(device: torch.device) -> None:
    """Waits until the device has finished what this thread launched on it; on a CPU, returns.

    Other streams of the device go on. An error of a kernel is raised here.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def to_host(tensor: Tensor) -> NDArray[Any]:
    """Copies a tensor to main memory once it is computed; see `all_to_host`."""
    (array,) = all_to_host(tensor)
    return array


def all_to_host(*tensors: Tensor) -> tuple[NDArray[Any], ...]:
    """Copies tensors to main memory once they are computed: of the first one's device, or the host.

    The wait comes first and the copies second: a copy that waits in the device's queue holds up the
    copies of other streams behind it. From CUDA they go to page-locked memory, without a detour
    through the driver's own; torch keeps that memory and gives it out again once the array is gone.
    """
    device = tensors[0].device
    wait_for_stream(device)
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    wait_for_stream(device)
    return tuple(copy.numpy() for copy in copies)


def take_cores(*, alone: bool) -> None:
    """Lets this thread compute on a CPU with one core, or with all that torch may take.

    In a process, only one thread at a time should have several. Each of them has a team of OpenMP
    threads of its own; once these are more than the cores, libgomp no longer lets a team spin while
    it waits for the next operation, and small operations take twice as long.

    Args:
        alone: Take one core.
    """
    # Torch keeps the number by thread, but a new thread begins with the one that was set last.
    torch.set_num_threads(1 if alone else _CORES)


def use_device(device: str) -> None:
    """Makes a CUDA device this thread's current one, for libraries that name no device themselves.

    To be called first in each thread that works for an engine. Does nothing for other devices, nor
    for "cuda" without an index, which is the current device.

    Args:
        device: The engine's device, in torch's words.
    """
    wanted = torch.device(device)
    if wanted.type == "cuda" and wanted.index is not None and torch.cuda.is_available():
        torch.cuda.set_device(wanted)


def go_first(device: str) -> None:
    """Lets the kernels of this thread start before those that other threads have waiting.

    Makes the device the thread's current one, too. Does nothing where torch finds no CUDA device.

    Args:
        device: A CUDA device, in torch's words.
    """
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream(device, priority=-1))  # type: ignore[no-untyped-call]


def go_beside(device: str) -> None:
    """Gives this thread a stream of its own, so that its kernels run beside those of other threads.

    Makes the device the thread's current one, too. Does nothing where torch finds no CUDA device.

    Args:
        device: A CUDA device, in torch's words.
    """
    if torch.cuda.is_available():
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
