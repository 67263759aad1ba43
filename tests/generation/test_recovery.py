"""Errors of the device are told from those of code that the device does not take."""

import pytest
import torch

from generation.errors import EngineDead, OutOfMemory
from generation.recovery import is_of_device


def _capture(error: Exception | None = None) -> Exception:
    """What the end of a recording raises after an error, or by itself."""
    end = torch.AcceleratorError("CUDA error: operation failed due to a previous error in capture")
    end.__context__ = error
    return end


LOST = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LOST, True),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), True),
        (OutOfMemory("out of GPU memory with chunks of 65536"), True),
        (EngineDead("lift lost the device"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (_capture(torch.OutOfMemoryError("2 GiB")), True),
        (_capture(LOST), True),
        (_capture(), False),
        (_capture(RuntimeError("not permitted when stream is capturing")), False),
        (torch.AcceleratorError("CUDA error: no kernel image is available"), False),
        (RuntimeError("Triton Error [CUDA]: invalid argument"), False),
        (RuntimeError("InductorError: no C++ compiler"), False),
        (ValueError("bad shape"), False),
    ],
)
def test_what_is_of_the_device(error: Exception, expected: bool) -> None:
    assert is_of_device(error) is expected
