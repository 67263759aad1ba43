"""What the engines of one process share: compilers, the log's warnings, the garbage collector."""

import asyncio
import gc
from weakref import WeakKeyDictionary

_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
_engines = 0


def one_at_a_time() -> asyncio.Lock:
    """Returns the lock that an engine holds while it loads and while it warms up.

    Libraries change the process's warning filters while they load, compilers are not made for
    several threads, and what two engines do at once with one interpreter says little about how long
    their steps take later.
    """
    return _locks.setdefault(asyncio.get_running_loop(), asyncio.Lock())


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
