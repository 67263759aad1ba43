"""Tells errors that concern one request from those after which the device is lost."""

from generation.errors import EngineDead, GenerationError

_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")
_LOST = ("CUDA error", "device-side assert", "illegal memory access", "CUDA driver error")


def classify(stage: str, error: Exception) -> GenerationError | EngineDead:
    """Turns an error of a stage into one of the two families.

    A CUDA context that met an illegal access, an assertion on the device or a hardware fault
    answers every later call with the same error (CUDA Runtime API, "sticky" errors), so only a new
    process helps. Running out of memory is not of that kind; what torch holds in reserve is
    given back for the next request.

    Args:
        stage: Where it happened.
        error: Any exception that a stage raised.
    """
    import torch

    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _OUT_OF_MEMORY)
    ):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return GenerationError(f"{stage} ran out of memory: {_first_line(text)}")
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _LOST)
    ):
        return EngineDead(f"{stage} lost the device: {_first_line(text)}")
    return GenerationError(f"{stage} failed: {_first_line(text)}")


def _first_line(text: str) -> str:
    return text.splitlines()[0]
