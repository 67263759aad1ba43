"""Keeps diffusers and transformers from talking over the program."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


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
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.set_verbosity_error()
        diffusers_logging.disable_progress_bar()
        yield
