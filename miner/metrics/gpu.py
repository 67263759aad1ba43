"""Memory of the GPUs in use, without waiting for a driver that hangs."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from miner.daemon_call import LoneCall, StillRunning

READ_LIMIT_S = 0.5
"""Seconds that a reading may take; a hung GPU may keep its thread forever."""

Sizes = Mapping[tuple[str, str], int]
"""Bytes by device ("cuda:0") and kind: "total" and "used" of the whole device, "allocated" and
"reserved" by torch in this process."""


class GpuMemory:
    """The memory of the devices on which torch has reserved some, as last read.

    Args:
        in_use: Whether there is something to read.
        read: Reads it; blocks.

    Attributes:
        sizes: Empty if there is none, and if the last reading failed.
    """

    def __init__(
        self, in_use: Callable[[], bool] | None = None, read: Callable[[], Sizes] | None = None
    ) -> None:
        self._in_use = in_use or _cuda_in_use
        self._read = LoneCall(read or _read, "the reading of GPU memory", READ_LIMIT_S)
        self.sizes: Sizes = {}

    async def refresh(self) -> None:
        """Reads the memory now; takes `READ_LIMIT_S` at most."""
        if not self._in_use():
            return
        try:
            self.sizes = await self._read()
        except StillRunning:
            return  # For another scraper; or it hangs, and has reached its limit before.
        except Exception:  # A lost device raises what it likes, and the miner reports that itself.
            self.sizes = {}


def _cuda_in_use() -> bool:
    """Whether the miner has begun to use CUDA: a reading must not import torch or begin to."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)  # None while torch is being imported.
    return is_initialized is not None and bool(is_initialized())


def _read() -> Sizes:
    from torch import cuda

    sizes: dict[tuple[str, str], int] = {}
    for index in range(cuda.device_count()):
        reserved = cuda.memory_reserved(index)
        if not reserved:
            continue  # To ask an unused device for its memory would take some of it.
        free, total = cuda.mem_get_info(index)
        device = f"cuda:{index}"
        sizes[device, "total"], sizes[device, "used"] = total, total - free
        sizes[device, "reserved"] = reserved
        sizes[device, "allocated"] = cuda.memory_allocated(index)
    return sizes
