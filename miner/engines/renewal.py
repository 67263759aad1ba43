"""Starts engines again one after the other, while the others serve."""

import asyncio
from collections.abc import Callable

from loguru import logger

from miner.engines.fleet import Fleet
from miner.scheduling.scheduler import Scheduler

LOOK_EVERY_S = 0.05
"""Seconds between two looks at whether an engine has ended what it had."""


async def renew_engines(
    fleet: Fleet, scheduler: Scheduler, *, ready: Callable[[], bool], proceed: Callable[[], None]
) -> None:
    """Lets each engine end what it has, and starts it again; ends with the first that fails.

    Only engines with processes of their own can be started again, and one has to serve meanwhile.

    Args:
        fleet: The engines.
        scheduler: Gives a drained engine nothing more.
        ready: Whether the service still takes requests.
        proceed: Starts what is due.
    """
    names = fleet.renewable
    if len(names) < 2:
        logger.warning(
            "no engine is renewed: of {} that can be started again, another has to serve",
            len(names),
        )
        return
    for name in names:
        if not ready() or not await _renew(name, fleet, scheduler, proceed):
            logger.error("not all engines were renewed; see the log above")
            return
    logger.info("{} engines are renewed", len(names))


async def _renew(
    name: str, fleet: Fleet, scheduler: Scheduler, proceed: Callable[[], None]
) -> bool:
    scheduler.hold_engine(name)
    proceed()
    while True:
        if name not in fleet.renewable:
            return False  # It was lost, and is started again as such.
        if not scheduler.is_busy(name):
            break
        await asyncio.sleep(LOOK_EVERY_S)
    scheduler.remove_engine(name)
    return await fleet.renew(name)
