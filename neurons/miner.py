"""A miner neuron: `python -m neurons.miner --help`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from loguru import logger

from miner.assembly import Parts, assemble, chain_of, open_logs
from miner.engines.renewal import ignore_hangup, renew_on_hangup
from miner.interpreter import program_name
from miner.last_resort import LastResort
from miner.logs import close_logs
from miner.score.log import ScoreLog
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from miner.surroundings import FOLDER, settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError

# What they import takes seconds; --help and a mistyped flag are answered at once.
if TYPE_CHECKING:
    from miner.chain.metagraph import Chain

T = TypeVar("T")
STOPPED, DIED, NOT_STARTED, DEREGISTERED = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until a signal or the end of the last engine; returns the exit status.

    Does not return if a thread hangs: joining it would keep the process, so it ends by `os._exit`.
    """
    try:
        settle_terminal()
        with starting_up():
            config = read_settings(
                MinerConfig, prog=program_name("neurons.miner"), env_prefix="MINER", argv=argv
            )
        with ExitStack() as locks:
            with starting_up():
                score_log = open_logs(config, locks)
                _settle(config)
            code, hung = asyncio.run(_run(config, score_log))
        if hung:
            logger.warning("a thread hangs; the process ends without it")
            close_logs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        return code
    except SetupError as error:
        tell(error)
        return NOT_STARTED
    finally:
        LastResort.call_off()
        close_logs()


def _settle(config: MinerConfig) -> None:
    # Nothing that writes into a home has been imported so far.
    folder = settle(config.log.dir / FOLDER)
    if folder is not None:
        logger.warning(
            "this user's caches cannot be written; libraries keep theirs in {} (set XDG_CACHE_HOME "
            "to choose another folder)",
            folder,
        )


async def _run(config: MinerConfig, score_log: ScoreLog) -> tuple[int, bool]:
    last_resort = LastResort(config.drain.limit)
    stop = _stop_on_signals(last_resort)
    if config.engines.kind == "ray":
        ignore_hangup()
    started = time.monotonic()
    code, reason, hung = DIED, "unexpected error", False
    try:
        with starting_up():
            chain = chain_of(config)
            parts = await _until((stop,), assemble(config, chain, score_log))
        if parts is None:
            if chain is not None:
                await chain.close()
            code, reason = STOPPED, "asked to by a signal"
        else:
            if config.engines.kind == "ray":
                renew_on_hangup(parts.service.renew_engines)
            code, reason = await _serve(parts, chain, stop, last_resort)
            hung = parts.service.hung
    except SetupError as error:
        code, reason = NOT_STARTED, error.problem
        raise
    except Exception as error:
        logger.bind(only_file=True).opt(exception=error).critical("unexpected error")
        raise
    finally:
        uptime = time.monotonic() - started
        score_log.write("miner_stopped", exit_code=code, reason=reason, uptime_s=uptime)
        score_log.close()
    logger.info("stopped: {}", reason)
    return code, hung


async def _serve(
    parts: Parts, chain: "Chain | None", stop: asyncio.Event, last_resort: LastResort
) -> tuple[int, str]:
    service, transports, metrics = parts.service, parts.transports, parts.metrics

    async def serve() -> None:
        with starting_up():
            if metrics is not None:
                await metrics.serve()
            for transport in transports:
                await transport.serve()
            await service.start()
        last_resort.watch_loop()
        died = asyncio.create_task(service.died.wait())
        publishing = asyncio.create_task(_publish(chain, parts.axon))
        try:
            await asyncio.wait({died, publishing}, return_when=asyncio.FIRST_COMPLETED)
            if publishing.done():
                publishing.result()  # May raise the reason not to go on.
                await died
        finally:
            died.cancel()
            publishing.cancel()

    async with AsyncExitStack() as closing:  # It closes the last one first.
        ends = [stop]
        if metrics is not None:
            closing.push_async_callback(metrics.close)
        if chain is not None:
            closing.push_async_callback(chain.close)
            ends.append(chain.deregistered)
        if parts.thumbnails is not None:
            closing.push_async_callback(asyncio.to_thread, parts.thumbnails.close)
        closing.push_async_callback(service.close)
        for transport in transports:
            closing.push_async_callback(transport.close)
        try:
            await _until(ends, serve())
        finally:
            last_resort.process_ends()
        await service.drain()
    if service.died.is_set():
        return DIED, "the engine died"
    if chain is not None and chain.deregistered.is_set():
        return DEREGISTERED, "the hotkey has lost its uid: it is not registered any more"
    return STOPPED, "asked to by a signal"


async def _publish(chain: "Chain | None", axon: object | None) -> None:
    if chain is not None and axon is not None:
        await chain.publish(axon)


async def _until(ends: Sequence[asyncio.Event], coroutine: Coroutine[Any, Any, T]) -> T | None:
    """Awaits the coroutine, or gives it up and returns None once one of the events is set.

    It does not begin if one is set already.
    """
    if any(end.is_set() for end in ends):
        coroutine.close()
        return None
    work = asyncio.create_task(coroutine)
    tasks = [work, *(asyncio.create_task(end.wait()) for end in ends)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return None if work.cancelled() else work.result()


def _stop_on_signals(last_resort: LastResort) -> asyncio.Event:
    """The first SIGTERM or SIGINT sets the event; the second one ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        logger.info("answering what was admitted; a second signal stops at once")
        last_resort.process_ends()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


if __name__ == "__main__":
    sys.exit(main())
