"""Tells errors that concern one request from those after which the device is lost."""

from collections.abc import Callable
from typing import TypeVar

from loguru import logger

from generation.errors import EngineDead, GenerationError, OutOfMemory
from protocol.errors import SetupError, TaskError

T = TypeVar("T")

_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")
_LOST = (
    *("CUDA error", "CUDA driver error", "device-side assert", "illegal memory access"),
    *("illegal instruction", "misaligned address", "unspecified launch failure"),
)
_UNSUPPORTED = (
    *("no kernel image", "kernel image is invalid", "PTX", "invalid device function"),
    *("too many resources", "invalid configuration", "invalid argument", "not supported", "captur"),
)
"""In CUDA's messages about a kernel that this device does not take, or about a recording."""


def attempt(stage: str, work: Callable[[], T], drop_caches: Callable[[], None]) -> T:
    """Does the work of a stage, a second time without caches if memory runs out.

    Args:
        stage: What messages call it.
        work: What to do; without effects if it fails.
        drop_caches: Gives back all memory that is only kept to save time.

    Raises:
        GenerationError: This request failed; `OutOfMemory` if memory ran out twice.
        TaskError: The request cannot be served.
        EngineDead: No further request can.
        SetupError: The machine lacks something, as the warm-up finds out.
    """
    try:
        return _sorted_errors(stage, work)
    except OutOfMemory as error:
        logger.warning("{}; trying again without caches", error)

    def again() -> T:
        drop_caches()
        return work()

    # Outside the handler, where the exception's frames no longer hold tensors.
    return _sorted_errors(stage, again)


def _sorted_errors(stage: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except (GenerationError, TaskError, EngineDead, SetupError):
        raise
    except Exception as error:
        fault = classify(stage, error)
        if not isinstance(fault, OutOfMemory):
            logger.opt(exception=error).error("{}", fault)
        try:
            raise fault from error
        finally:
            # A frame and the exception that passed it would keep each other, and tensors, alive.
            del fault


def classify(stage: str, error: Exception) -> GenerationError | EngineDead:
    """Turns an error of a stage into one of the two families.

    A CUDA context that met an illegal access, an assertion on the device or a hardware fault
    answers every later call with the same error (CUDA Runtime API, "sticky" errors), so only a new
    process helps. Running out of memory is not of that kind.

    Args:
        stage: Where it happened.
        error: Any exception that a stage raised.
    """
    import torch

    text = f"{type(error).__name__}: {error}".strip()
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _OUT_OF_MEMORY)
    ):
        return OutOfMemory(f"{stage} ran out of memory: {_first_line(text)}")
    if isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(mark in text for mark in _LOST)
    ):
        return EngineDead(f"{stage} lost the device: {_first_line(text)}")
    return GenerationError(f"{stage} failed: {_first_line(text)}")


def is_of_device(error: BaseException) -> bool:
    """Whether memory ran out or the device is lost, so that another way of computing is no help.

    False where a compiler or the device only does not take this code: then another way is.

    Args:
        error: What compiling, recording or launching a kernel raised. What led to it counts too:
            after any error, the end of a recording raises one of its own.
    """
    seen: BaseException | None = error
    while isinstance(seen, Exception):
        known = isinstance(seen, OutOfMemory | EngineDead)
        fault = seen if known else classify("", seen)
        unsupported = any(mark in str(seen) for mark in _UNSUPPORTED)
        if isinstance(fault, OutOfMemory) or (isinstance(fault, EngineDead) and not unsupported):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _first_line(text: str) -> str:
    return text.splitlines()[0]
