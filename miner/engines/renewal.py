"""Starts engines again one after the other, while the others serve."""

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from loguru import logger

from miner.engines.fleet import Fleet
from miner.scheduling.scheduler import Scheduler

LOOK_EVERY_S = 0.05
"""Seconds between two looks at whether an engine has ended what it had."""


def renew_on_hangup(renew: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Renews the engines on SIGHUP; one that comes while they are being renewed changes nothing.

    Args:
        renew: Renews them.
    """
    loop = asyncio.get_running_loop()
    running: asyncio.Task[None] | None = None

    def on_signal() -> None:
        nonlocal running
        if running is None or running.done():
            running = loop.create_task(renew())
        else:
            logger.warning("the engines are being started again already")

    loop.add_signal_handler(signal.SIGHUP, on_signal)


def ignore_hangup() -> None:
    """Lets SIGHUP renew nothing yet; its default action would end a miner that still starts."""
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGHUP, logger.warning, "no engine is renewed: the miner still starts"
    )


async def renew_engines(
    fleet: Fleet, scheduler: Scheduler, *, ready: Callable[[], bool], proceed: Callable[[], None]
) -> None:
    """Lets each engine end what it has, and starts it again; ends with the first that fails.

    An engine that would leave requests without any other goes on as it is.
    Only engines with processes of their own can be started again, and one has to serve meanwhile.

    Args:
        fleet: The engines.
        scheduler: Gives a drained engine nothing more.
        ready: Whether the service still takes requests.
        proceed: Starts what is due.
    """
    if not ready():
        logger.warning("no engine is renewed: the miner is not ready")
        return
    names = fleet.renewable
    if len(names) < 2:
        logger.warning(
            "no engine is renewed: of {} that can be started again, another has to serve",
            len(names),
        )
        return
    logger.info("the engines are started again, one after the other")
    for name in names:
        if not await _renew(name, fleet, scheduler, ready, proceed):
            if ready():
                logger.error("not all engines were renewed; see the log above")
            return
    logger.info("{} engines are renewed", len(names))


async def _renew(
    name: str,
    fleet: Fleet,
    scheduler: Scheduler,
    ready: Callable[[], bool],
    proceed: Callable[[], None],
) -> bool:
    scheduler.hold_engine(name)
    proceed()
    while True:
        if name not in fleet.renewable:
            return False  # It was lost, and is started again as such.
        alone = not set(fleet.renewable) - fleet.suspect - {name}
        if alone or not ready():
            if alone:
                logger.warning("engine {} goes on as it is: no other one serves meanwhile", name)
            scheduler.release_engine(name)
            proceed()
            return False
        if not scheduler.is_busy(name):
            break
        await asyncio.sleep(LOOK_EVERY_S)
    scheduler.remove_engine(name)
    return await fleet.renew(name)
