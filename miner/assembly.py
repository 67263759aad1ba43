"""Puts a miner together from its settings, cheapest checks first, before any model is loaded."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from miner.logs import program_version
from miner.score.log import ScoreLog
from miner.settings.miner import MinerConfig

# What they import takes seconds; --help and a mistyped flag are answered at once.
if TYPE_CHECKING:
    from miner.chain.metagraph import Chain
    from miner.service import MinerService
    from miner.transports import Transport
    from miner.transports.push.axon import AxonTransport


@dataclass(frozen=True)
class Parts:
    """A miner that is ready to load.

    Attributes:
        service: The door to the engines.
        transports: The ways to it.
        axon: Published on the chain; None without push.
    """

    service: "MinerService"
    transports: "list[Transport]"
    axon: object | None


def chain_of(config: MinerConfig) -> "Chain":
    """Returns the subnet that the settings name: on a chain, or in a file."""
    if config.chain_file is not None:
        from miner.chain.file_chain import FileChain

        return FileChain(config.chain_file)
    from miner.chain.subtensor import SubtensorChain, external_ip

    find_ip = external_ip if config.axon_external_ip is None else None
    return SubtensorChain(config.network, config.netuid, find_ip=find_ip)


async def assemble(config: MinerConfig, chain: "Chain", score_log: ScoreLog) -> Parts:
    """Opens the wallet, finds the hotkey on the subnet, binds the ports and writes `miner_started`.

    Raises:
        SetupError: Something is missing; names the command that fixes it.
    """
    from generation.presets import preset
    from miner.chain.wallets import open_wallet
    from miner.engines.local import LocalEngine
    from miner.estimates_file import FILE_NAME, EstimatesFile
    from miner.service import MinerService

    settings = preset(config.preset_name)
    wallet = open_wallet(config.wallet_name, config.wallet_hotkey, config.wallet_path)
    hotkey = wallet.hotkey.ss58_address
    neuron = await chain.start(hotkey)
    service = MinerService(
        [LocalEngine(settings, models_dir=config.models_dir)],
        score_log,
        budget_s=config.budget,
        margin_s=config.budget_margin,
        estimates_file=EstimatesFile(config.log_dir / FILE_NAME, score_log.problems),
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
    return Parts(service, transports, axon)


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
    from miner.transports.pull.dendrite import offline_dendrite
    from miner.transports.pull.puller import PullTransport
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
        hosts=[host for host in (config.http_hosts or "").split(",") if host.strip()],
        up_axis=config.http_up_axis,
    )
