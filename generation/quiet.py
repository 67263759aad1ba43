"""Keeps diffusers and transformers from talking over the program, and from a broken torchvision."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Import, load and save with diffusers and transformers inside this context.

    From the first entry on, both log errors only and draw no progress bars: they report absent
    optional packages when imported, and later every truncated prompt. Python warnings, which they
    raise about each other's future versions, are off inside the context only. Not for use while
    other threads rely on warnings.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchvision_problem()
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        yield


@cache
def torchvision_problem() -> str | None:
    """Returns why torchvision cannot be used; None if it can.

    One that does not match torch is hidden from then on: transformers imports any torchvision that
    is installed, for parts that FLUX does without, and fails where that fails.
    """
    if find_spec("torchvision") is None:
        return "torchvision is not installed"
    try:
        import torchvision  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # type: ignore[assignment]
        versions = f"torchvision {version('torchvision')} and torch {version('torch')}"
        return f"{versions} do not work together: {error}"
    return None
