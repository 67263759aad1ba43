"""The garbage collector of a process with engines."""

import asyncio
import gc

_engines = 0


async def freeze() -> None:
    """Takes what is loaded out of the collector's rounds; acts for the first engine of a process.

    Libraries leave a million objects that stay. A round over them would delay a request by tenths
    of a second.
    """
    global _engines
    _engines += 1
    if _engines == 1:
        await asyncio.to_thread(gc.collect)
        gc.freeze()


def unfreeze() -> None:
    """Undoes `freeze` once as many engines have called it."""
    global _engines
    _engines -= 1
    if _engines == 0:
        gc.unfreeze()
