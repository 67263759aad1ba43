"""A miner neuron: `python -m neurons.miner --help`."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from loguru import logger

from miner.logs import configure_logs, log_stage, program_version
from miner.score.log import ScoreLog
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError

# What they import takes seconds; --help and a mistyped flag are answered at once.
if TYPE_CHECKING:
    from miner.chain.metagraph import Chain
    from miner.service import MinerService
    from miner.transports import Transport
    from miner.transports.push.axon import AxonTransport

STOPPED, DIED, NOT_STARTED, DEREGISTERED = 0, 1, 2, 3


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
        service, transports, axon = await _assemble(config, chain, score_log)
        code, reason = await _serve(service, transports, axon, chain, stop)
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
        from miner.chain.file_chain import FileChain

        return FileChain(config.chain_file)
    from miner.chain.subtensor import SubtensorChain, external_ip

    find_ip = external_ip if config.axon_external_ip is None else None
    return SubtensorChain(config.network, config.netuid, find_ip=find_ip)


async def _assemble(
    config: MinerConfig, chain: "Chain", score_log: ScoreLog
) -> tuple["MinerService", list["Transport"], object | None]:
    """Checks everything that can be missing, cheapest first, before any model is loaded.

    Returns:
        The service, the ways to it, and the axon that the chain is to be told of, if any.
    """
    from generation.pipeline import GenerationPipeline
    from generation.presets import preset
    from miner.chain.wallets import open_wallet
    from miner.service import MinerService

    settings = preset(config.preset_name)
    wallet = open_wallet(config.wallet_name, config.wallet_hotkey, config.wallet_path)
    hotkey = wallet.hotkey.ss58_address
    neuron = await chain.start(hotkey)
    service = MinerService(
        GenerationPipeline(settings, models_dir=config.models_dir, on_event=log_stage),
        score_log,
        budget_s=config.budget,
        margin_s=config.budget_margin,
        max_pending=config.limits_pending,
        max_pending_per_caller=config.limits_pending_per_caller,
    )
    transports: list[Transport] = []
    axon = None
    if "push" in config.transports:
        push = await _axon(config, service, chain, score_log, wallet)
        transports.append(push)
        axon = push.axon
    if "pull" in config.transports:
        transports.append(_puller(config, service, chain, score_log, wallet))
    if "http" in config.transports:
        transports.append(_http(config, service, score_log))
    logger.info("hotkey {} is uid {} of {}", hotkey, neuron.uid, config.network)
    if settings.knows:
        logger.warning("preset {} knows only {}", settings.name, settings.knows)
    score_log.write(
        "miner_started",
        version=program_version(),
        preset=settings.name,
        transports=[transport.name for transport in transports],
        budget_s=config.budget,
        pid=os.getpid(),
        netuid=config.netuid,
        network=config.network,
        hotkey=hotkey,
        uid=neuron.uid,
    )
    return service, transports, axon


async def _axon(
    config: MinerConfig, service: "MinerService", chain: "Chain", score_log: ScoreLog, wallet: Any
) -> "AxonTransport":
    from miner.chain.subtensor import external_ip
    from miner.transports.push.axon import AxonTransport
    from miner.transports.push.checks import Admission

    ip = config.axon_external_ip
    if ip is None:
        ip = "127.0.0.1" if config.chain_file is not None else await external_ip()
    return AxonTransport(
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
        external_ip=ip,
        external_port=config.axon_external_port,
        per_minute=config.limits_per_minute,
        version=program_version(),
    )


def _puller(
    config: MinerConfig, service: "MinerService", chain: "Chain", score_log: ScoreLog, wallet: Any
) -> "Transport":
    from miner.transports.pull.calls import ValidatorCalls
    from miner.transports.pull.puller import PullTransport, offline_dendrite
    from miner.transports.pull.state import FILE_NAME, PullStateFile
    from miner.transports.pull.validators import Selection

    hotkey = wallet.hotkey.ss58_address
    return PullTransport(
        service,
        chain,
        score_log,
        calls=ValidatorCalls(offline_dendrite(wallet), wallet.hotkey),
        selection=Selection(
            hotkey, config.pull_min_stake, config.pull_preferred, config.pull_every
        ),
        state_file=PullStateFile(config.pull_state or config.log_dir / FILE_NAME, hotkey),
        workers=config.pull_workers,
    )


def _http(config: MinerConfig, service: "MinerService", score_log: ScoreLog) -> "Transport":
    from miner.transports.http.server import HttpTransport

    key = config.http_api_key
    return HttpTransport(
        service,
        score_log,
        ip=config.http_ip,
        port=config.http_port,
        api_key=key.get_secret_value() if key is not None else None,
        allow_open=config.http_allow_open,
        up_axis=config.http_up_axis,
    )


async def _serve(
    service: "MinerService",
    transports: Sequence["Transport"],
    axon: object | None,
    chain: "Chain",
    stop: asyncio.Event,
) -> tuple[int, str]:
    async def serve() -> None:
        for transport in transports:
            await transport.serve()
        await service.start()
        if axon is not None:
            await chain.publish(axon)
        await service.died.wait()

    async with AsyncExitStack() as closing:  # It closes the last one first.
        closing.push_async_callback(chain.close)
        closing.push_async_callback(service.close)
        for transport in transports:
            closing.push_async_callback(transport.close)
        await _until((stop, chain.deregistered), serve())
        await service.drain()
    if service.died.is_set():
        return DIED, "the engine died"
    if chain.deregistered.is_set():
        return DEREGISTERED, "the hotkey has lost its uid: it is not registered any more"
    return STOPPED, "asked to by a signal"


async def _until(ends: Sequence[asyncio.Event], coroutine: Coroutine[Any, Any, None]) -> None:
    """Awaits the coroutine, or gives it up once one of the events is set."""
    work = asyncio.create_task(coroutine)
    tasks = [work, *(asyncio.create_task(end.wait()) for end in ends)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
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
