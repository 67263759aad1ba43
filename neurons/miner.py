"""A miner neuron: `python -m neurons.miner --help`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

from loguru import logger

from miner.config import MinerConfig
from miner.logs import configure_logs, program_version
from miner.score_log import ScoreLog
from miner.settings import read_settings
from protocol.errors import SetupError

# What they import takes seconds; --help and a mistyped flag are answered at once.
if TYPE_CHECKING:
    from miner.service import MinerService
    from miner.subnet import Chain
    from miner.transports.axon import AxonTransport

STOPPED, DIED, NOT_STARTED = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until a signal or the end of the engine; returns the exit status."""
    try:
        config = read_settings(
            MinerConfig, prog="python -m neurons.miner", env_prefix="MINER", argv=argv
        )
        configure_logs(config.log_level, config.log_dir)
        return asyncio.run(_run(config, ScoreLog(config.log_dir)))
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return NOT_STARTED


async def _run(config: MinerConfig, score_log: ScoreLog) -> int:
    stop = _stop_on_signals()
    started = time.monotonic()
    code, reason = DIED, "unexpected error"
    try:
        chain = _chain(config)
        service, transport = await _assemble(config, chain, score_log)
        code, reason = await _serve(service, transport, chain, stop)
    except SetupError as error:
        code, reason = NOT_STARTED, error.problem
        raise
    finally:
        uptime = time.monotonic() - started
        score_log.write("miner_stopped", exit_code=code, reason=reason, uptime_s=uptime)
        score_log.close()
    logger.info("stopped: {}", reason)
    return code


def _chain(config: MinerConfig) -> "Chain":
    if config.chain_file is not None:
        from miner.subnet import FileChain

        return FileChain(config.chain_file)
    from miner.chain import SubtensorChain

    return SubtensorChain(config.network, config.netuid)


async def _assemble(
    config: MinerConfig, chain: "Chain", score_log: ScoreLog
) -> tuple["MinerService", "AxonTransport"]:
    """Checks everything that can be missing, cheapest first, before any model is loaded."""
    from generation.pipeline import GenerationPipeline
    from generation.presets import preset
    from miner.chain import external_ip, open_wallet
    from miner.service import MinerService
    from miner.transports.axon import AxonTransport
    from miner.transports.axon_checks import Admission

    settings = preset(config.preset_name)
    wallet = open_wallet(config.wallet_name, config.wallet_hotkey, config.wallet_path)
    hotkey = wallet.hotkey.ss58_address
    neuron = await chain.start(hotkey)
    on_loopback = config.chain_file is not None
    service = MinerService(
        GenerationPipeline(settings, models_dir=config.models_dir),
        score_log,
        budget_s=config.budget,
        margin_s=config.budget_margin,
        max_pending=config.limits_pending,
        max_pending_per_caller=config.limits_pending_per_caller,
    )
    transport = AxonTransport(
        service,
        chain,
        score_log,
        wallet=wallet,
        admission=Admission(
            config.blacklist_min_stake,
            config.blacklist_allow_no_permit,
            config.blacklist_allow_non_registered,
        ),
        ip=config.axon_ip,
        port=config.axon_port,
        external_ip=config.axon_external_ip
        or ("127.0.0.1" if on_loopback else await external_ip()),
        external_port=config.axon_external_port,
        per_minute=config.limits_per_minute,
        version=program_version(),
    )
    logger.info("hotkey {} is uid {} of {}", hotkey, neuron.uid, config.network)
    if settings.untrained:
        logger.warning("preset {} is untrained: its assets are shapeless", settings.name)
    score_log.write(
        "miner_started",
        version=program_version(),
        preset=settings.name,
        untrained=settings.untrained,
        transports=["axon"],
        budget_s=config.budget,
        pid=os.getpid(),
        netuid=config.netuid,
        network=config.network,
        hotkey=hotkey,
        uid=neuron.uid,
    )
    return service, transport


async def _serve(
    service: "MinerService", transport: "AxonTransport", chain: "Chain", stop: asyncio.Event
) -> tuple[int, str]:
    async def serve() -> None:
        await transport.serve()  # Until the service is ready, requests are answered as dropped.
        await service.start()
        await chain.publish(transport.axon)
        await service.died.wait()

    try:
        await _until(stop, serve())
        await service.drain()
    finally:
        await transport.close()
        await service.close()
        await chain.close()
    return (DIED, "the engine died") if service.died.is_set() else (STOPPED, "asked to by a signal")


async def _until(stop: asyncio.Event, coroutine: Coroutine[Any, Any, None]) -> None:
    """Awaits the coroutine, or gives it up once `stop` is set."""
    work, stopped = asyncio.create_task(coroutine), asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (work, stopped):
        task.cancel()
    await asyncio.wait({work, stopped})
    if not work.cancelled():
        work.result()


def _stop_on_signals() -> asyncio.Event:
    """The first SIGTERM or SIGINT sets the event; the second one ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        logger.info("finishing what is in hand; a second signal stops at once")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


if __name__ == "__main__":
    sys.exit(main())
