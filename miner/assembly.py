"""Puts a miner together from its settings, cheapest checks first, before any model is loaded."""

import os
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from miner.file_lock import FOLDER_LOCK, FileLock
from miner.logs import configure_logs, program_version
from miner.score.log import ScoreLog
from miner.score.thumbnails import Thumbnails
from miner.settings.miner import MinerConfig
from protocol.files import remove_drafts
from protocol.text import printable

# What they import takes seconds; --help and a mistyped flag are answered at once.
if TYPE_CHECKING:
    from miner.chain.metagraph import Chain
    from miner.kept_gate import KeptGate
    from miner.metrics.events import EventMetrics
    from miner.metrics.server import MetricsServer
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
        metrics: Their port; None where it is off.
        thumbnails: Pictures of the last answers; None where they are off.
    """

    service: "MinerService"
    transports: "list[Transport]"
    axon: object | None
    metrics: "MetricsServer | None" = None
    thumbnails: Thumbnails | None = None


@dataclass(frozen=True)
class Member:
    """The miner's place on a subnet.

    Attributes:
        wallet: Signs what the miner sends.
        chain: The subnet.
        uid: The hotkey's number on it.
    """

    wallet: Any
    chain: "Chain"
    uid: int

    @property
    def hotkey(self) -> str:
        """The SS58 address of the hotkey."""
        return str(self.wallet.hotkey.ss58_address)


def open_logs(config: MinerConfig, locks: ExitStack) -> ScoreLog:
    """Locks the folder of the logs and what else has one writer, and opens the logs.

    Args:
        config: The settings.
        locks: Releases them when it closes.

    Raises:
        SetupError: Another miner has one of them, or the folder cannot be written.
    """
    folder = config.log.dir
    lock = FileLock(folder / FOLDER_LOCK, what=f"the log folder {folder}", flag="--log.dir")
    locks.callback(lock.release)
    remove_drafts(folder)
    for transport, state in (("pull", config.pull.state), ("gateway", config.gateway.state)):
        if state is not None and config.serves(transport):
            path, flag = state.with_name(f"{state.name}.lock"), f"--{transport}.state"
            locks.callback(FileLock(path, what=f"the file {state}", flag=flag).release)
    score_log = ScoreLog(folder, lock=lock)
    configure_logs(config.log.level, folder, problems=score_log.problems)
    return score_log


def chain_of(config: MinerConfig) -> "Chain | None":
    """Returns the subnet that the settings name, on a chain or in a file; None if not needed."""
    if not config.needs_chain:
        return None
    if config.chain.file is not None:
        from miner.chain.file_chain import FileChain

        return FileChain(config.chain.file)
    from miner.chain.subtensor import SubtensorChain, external_ip

    find_ip = external_ip if config.axon.external_ip is None else None
    return SubtensorChain(config.network, config.netuid, find_ip=find_ip)


async def assemble(config: MinerConfig, chain: "Chain | None", score_log: ScoreLog) -> Parts:
    """Opens the wallet, finds the hotkey on the subnet, binds the ports and writes `miner_started`.

    Args:
        config: The settings.
        chain: From `chain_of`.
        score_log: Receives the line.

    Raises:
        SetupError: Something is missing; names the command that fixes it.
    """
    from generation.presets import changes
    from miner.engines.making import make_engines
    from miner.estimates_file import FILE_NAME, EstimatesFile
    from miner.service import MinerService

    settings = config.generation
    kept = config.log.thumbnails
    thumbnails = (
        Thumbnails(config.log.dir, keep=kept, problems=score_log.problems) if kept else None
    )
    events = _count_events(config, score_log)
    kept_gate = _gate(config, score_log)
    wallet = _wallet(config) if config.needs_wallet else None
    member = await _join(wallet, chain, score_log) if chain is not None else None
    service = MinerService(
        await make_engines(config.engines, settings, config.models.dir),
        score_log,
        budget_s=config.budget,
        margin_s=config.budget_margin,
        estimates_file=EstimatesFile(config.log.dir / FILE_NAME, score_log.problems),
        on_answer=[thumbnails] if thumbnails is not None else [],
        sole_caller=config.transports in ("http", "gateway"),
        vocabulary=settings.vocabulary,
        candidates=config.candidate_limits,
        gate=kept_gate.gate,
    )
    transports: list[Transport] = []
    axon = None
    if member is not None and "push" in config.transports:
        push = await _axon(config, service, member.chain, score_log, member.wallet)
        transports.append(push)
        axon = push.axon
    if member is not None and "pull" in config.transports:
        transports.append(
            _puller(config, service, member.chain, score_log, member.wallet, kept_gate)
        )
    if "http" in config.transports:
        transports.append(_http(config, service, score_log))
    if config.serves("gateway"):
        transports.append(_gateway(config, service, score_log, wallet))
    metrics = _metrics(config, events, service, member, transports, score_log)
    if member is not None:
        logger.info("hotkey {} is uid {} of {}", member.hotkey, member.uid, config.network)
    elif wallet is None:
        logger.info("http alone: no wallet is opened and no chain is read")
    else:
        logger.info("hotkey {}; no chain is read", wallet.hotkey.ss58_address)
    if config.preset is None:
        logger.warning("no preset is given: it is {}", settings.name)
    makes = "splats and meshes" if "mesh" in service.outputs else "splats, no meshes"
    logger.info("3D back end {}: {}", settings.lift.backend, makes)
    logger.info("quality levels: {}", ", ".join(rung.in_words for rung in service.ladder))
    changed = changes(settings)
    if changed:
        shown = ", ".join(f"{name} {value}" for name, value in changed.items())
        logger.info("preset {} with {}", settings.name, printable(shown, 500))
    if settings.scoring.scorer == "none":
        logger.info("no scorer: one object per task, and results are not gated")
    if settings.knows:
        logger.warning("preset {} knows only {}", settings.name, settings.knows)
    score_log.write(
        "miner_started",
        version=program_version(),
        preset=settings.name,
        back_end=settings.lift.backend,
        rungs=[asdict(rung) for rung in service.ladder],
        transports=[transport.name for transport in transports],
        budget_s=config.budget,
        pid=os.getpid(),
        netuid=config.netuid if member is not None else None,
        network=config.network if member is not None else None,
        hotkey=wallet.hotkey.ss58_address if wallet is not None else None,
        uid=member.uid if member is not None else None,
    )
    return Parts(service, transports, axon, metrics, thumbnails)


def _gate(config: MinerConfig, score_log: ScoreLog) -> "KeptGate":
    from miner.kept_gate import FILE_NAME, KeptGate
    from miner.scheduling.gate import GateLimits

    limits = GateLimits(**config.gate.model_dump(exclude={"send"}))
    return KeptGate(limits, config.log.dir / FILE_NAME, score_log.problems)


def _count_events(config: MinerConfig, score_log: ScoreLog) -> "EventMetrics | None":
    if config.metrics.port is None:
        return None
    from miner.metrics.opening import count_events

    return count_events(score_log)


def _metrics(
    config: MinerConfig,
    events: "EventMetrics | None",
    service: "MinerService",
    member: Member | None,
    transports: "list[Transport]",
    score_log: ScoreLog,
) -> "MetricsServer | None":
    if events is None or config.metrics.port is None:
        return None
    from miner.metrics.opening import open_metrics
    from miner.metrics.state import Place
    from miner.transports.pull.puller import PullTransport

    # A file does not age, and nobody loses a place in it.
    place = None
    if member is not None and config.chain.file is None:
        place = Place(member.chain, member.hotkey)
    waits = [each.validator_waits for each in transports if isinstance(each, PullTransport)]
    return open_metrics(
        events,
        service,
        score_log,
        ip=config.metrics.ip,
        port=config.metrics.port,
        preset=config.generation.name,
        budget_s=config.budget,
        transports=[transport.name for transport in transports],
        scores=config.generation.scoring.scorer != "none",
        place=place,
        validator_waits=waits[0] if waits else dict,
    )


def _wallet(config: MinerConfig) -> Any:
    from miner.chain.wallets import open_wallet

    return open_wallet(config.wallet.name, config.wallet.hotkey, config.wallet.path)


async def _join(wallet: Any, chain: "Chain", score_log: ScoreLog) -> Member:
    from miner.chain.earnings import EarningsLog

    chain.listen(EarningsLog(score_log, wallet.hotkey.ss58_address))
    neuron = await chain.start(wallet.hotkey.ss58_address)
    return Member(wallet, chain, neuron.uid)


async def _axon(
    config: MinerConfig, service: "MinerService", chain: "Chain", score_log: ScoreLog, wallet: Any
) -> "AxonTransport":
    from miner.chain.subtensor import external_ip
    from miner.transports.push.axon import AxonTransport
    from miner.transports.push.checks import Admission

    ip = config.axon.external_ip
    if ip is None:
        ip = "127.0.0.1" if config.chain.file is not None else await external_ip()
    return AxonTransport(
        service,
        chain,
        score_log,
        wallet=wallet,
        admission=Admission(**config.blacklist.model_dump()),
        ip=config.axon.ip,
        port=config.axon.port,
        external_ip=ip,
        external_port=config.axon.external_port,
        per_minute=config.limits.per_minute,
        version=program_version(),
        send_gated=config.gate.send,
    )


def _puller(
    config: MinerConfig,
    service: "MinerService",
    chain: "Chain",
    score_log: ScoreLog,
    wallet: Any,
    kept_gate: "KeptGate",
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
            hotkey, config.pull.min_stake, config.pull.preferred, config.pull.every
        ),
        state_file=PullStateFile(config.pull.state or config.log.dir / FILE_NAME, hotkey),
        workers=config.pull.workers,
        learn=kept_gate.observe,
    )


def _gateway(
    config: MinerConfig, service: "MinerService", score_log: ScoreLog, wallet: Any
) -> "Transport":
    from miner.transports.gateway.calls import GatewayCalls
    from miner.transports.gateway.nodes import Nodes, Pauses
    from miner.transports.gateway.state import FILE_NAME, GatewayStateFile
    from miner.transports.gateway.worker import GatewayTransport

    given = config.gateway
    calls = GatewayCalls(
        wallet.hotkey,
        worker_id=given.worker_id,
        tags=tuple(given.tags.split(",")) if given.tags else (),
    )
    return GatewayTransport(
        service,
        score_log,
        calls=calls,
        nodes=Nodes(
            given.addresses,
            clock=calls.clock,
            pauses=Pauses(given.poll, given.idle),
            discover=given.discover,
        ),
        state_file=GatewayStateFile(given.state or config.log.dir / FILE_NAME, calls.hotkey),
        workers=given.workers,
        budget_s=given.budget,
        candidates=given.candidates,
        results_per_minute=given.results_per_minute,
    )


def _http(config: MinerConfig, service: "MinerService", score_log: ScoreLog) -> "Transport":
    from miner.transports.http.server import HttpTransport
    from miner.transports.http.status import About

    key = config.http.api_key
    return HttpTransport(
        service,
        score_log,
        ip=config.http.ip,
        port=config.http.port,
        api_key=key.get_secret_value() if key is not None else None,
        allow_open=config.http.allow_open,
        hosts=[host for host in (config.http.hosts or "").split(",") if host.strip()],
        up_axis=config.http.up_axis,
        about=About(
            config.generation.name,
            config.generation.knows,
            config.budget,
            config.candidate_limits.max,
        ),
        candidates=config.http.candidates,
        send_gated=config.gate.send,
    )
