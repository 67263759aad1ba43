"""What the log warns of while something is measured."""

from collections.abc import Iterator
from contextlib import contextmanager

from loguru import logger


@contextmanager
def kept_warnings(messages: list[str]) -> Iterator[None]:
    """Adds warnings to a list: a network that is not compiled or recorded says so only there."""
    sink = logger.add(
        lambda message: messages.append(message.record["message"]), level="WARNING", format=""
    )
    try:
        yield
    finally:
        logger.remove(sink)
