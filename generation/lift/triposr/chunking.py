"""Bounded memory: work in chunks that shrink when the GPU is full."""

from collections.abc import Callable

import torch
from loguru import logger
from torch import Tensor

from generation.errors import OutOfMemory


def map_in_chunks(
    function: Callable[[int, int], Tensor], total: int, chunk: int, floor: int
) -> Tensor:
    """Calls a function on consecutive ranges and joins the results along dimension 0.

    Args:
        function: Maps a range (start, stop) to a tensor with stop - start rows.
        total: Number of rows, at least 1.
        chunk: Rows per call; halved whenever a call runs out of memory.
        floor: Fewest rows per call.

    Raises:
        OutOfMemory: There was not enough with `floor` rows.
    """
    parts: list[Tensor] = []
    start = 0
    while start < total:
        stop = min(start + chunk, total)
        part = _attempt(function, start, stop)
        if part is not None:
            parts.append(part)
            start = stop
        elif chunk <= floor:
            raise OutOfMemory(
                f"out of GPU memory with chunks of {chunk}, the smallest allowed; "
                "free memory on the device or choose a smaller preset"
            )
        else:
            logger.warning("out of GPU memory with chunks of {}; halving", chunk)
            chunk = max(floor, chunk // 2)
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attempt(function: Callable[[int, int], Tensor], start: int, stop: int) -> Tensor | None:
    try:
        return function(start, stop)
    except torch.OutOfMemoryError:
        pass
    # Outside the handler, where the exception's frames no longer hold the chunk's tensors.
    torch.cuda.empty_cache()
    return None
