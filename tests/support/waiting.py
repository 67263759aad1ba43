"""Waiting for what happens by itself, however slow the machine is."""

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0
"""Seconds for what takes milliseconds on an idle machine; pytest ends a test after 120 s."""


async def until(condition: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Waits until a condition is met, of which nothing tells."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
