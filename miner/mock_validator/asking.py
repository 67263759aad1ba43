"""The push side of a trial: tasks are sent to the miner's axon, and the answers judged."""

import asyncio
import base64
import math
import re
import ssl
import time
from collections.abc import Callable, Sequence
from typing import Any

from generation.words import for_log
from miner.chain.metagraph import Neuron
from miner.mock_validator.records import TrialRecord, judge
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask
from miner.transports.pull.dendrite import offline_dendrite
from miner.transports.pull.exchange import Exchange
from protocol.synapses import GenerateAsset
from protocol.text import printable

PROBE_LIMIT_S = 5.0
"""Seconds in which a port is asked whether it speaks TLS."""

MOST_STAGES = 32
"""Stages that are reported; a miner has a handful."""

_RECEIVER = re.compile(r"Signature mismatch with \d+\.\w+\.([1-9A-HJ-NP-Za-km-z]{46,50})\.")
"""The part of an axon's message that names its hotkey."""


async def ask_all(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    """Sends the tasks, as many at once as the settings say.

    Args:
        settings: The trial.
        wallet: A wallet or a keypair, which signs the requests.
        tasks: The tasks to send.
        on_record: Called with each record when its answer has been judged.

    Returns:
        The records, in the order of the tasks.
    """
    host, port = settings.address
    miner = Neuron(uid=0, hotkey=settings.miner_hotkey, ip=host, port=port)
    turns = asyncio.Semaphore(settings.concurrency)

    async def one(task: TrialTask) -> TrialRecord:
        # Judging takes its turn too, or it would slow down a miner on the same machine.
        async with turns:
            record, asset = await _ask(settings, dendrite, miner, task)
            if not record.problems:
                record = await asyncio.to_thread(
                    judge, record, asset, settings.out, limit_s=settings.timeout
                )
        on_record(record)
        return record

    async with offline_dendrite(wallet) as dendrite:
        return list(await asyncio.gather(*(one(task) for task in tasks)))


async def _ask(
    settings: TrialSettings, dendrite: Any, miner: Neuron, task: TrialTask
) -> tuple[TrialRecord, bytes]:
    request = GenerateAsset(
        task_type=task.kind,
        task_id=task.id,
        prompt=task.wire,
        seed=settings.seed,
        budget_s=settings.timeout,
    )
    start = time.monotonic()
    exchange = await dendrite.exchange(miner, request, settings.timeout)
    record = TrialRecord(
        name=task.name,
        kind=task.kind,
        prompt=task.shown,
        task_id=task.id,
        seed=settings.seed,
        status=exchange.status,
    )
    if exchange.status != 200:
        reason = await _cause(exchange, settings)
        return record.model_copy(
            update={"reason": reason, "elapsed_s": time.monotonic() - start}
        ), b""
    reply, asset = exchange.reply, b""
    problems: tuple[str, ...] = ()
    try:
        asset = base64.b64decode(reply.results, validate=True)
    except ValueError as error:
        problems = (f"results are not base64: {error}",)
    stages = list(reply.timings.items())[:MOST_STAGES]
    return record.model_copy(
        update={
            "outcome": printable(reply.outcome, 32) or "none",
            "reason_code": printable(reply.reason_code, 64),
            "reason": printable(reply.reason, 500),
            "timings": {printable(stage, 32): _finite(seconds) for stage, seconds in stages},
            "total_s": _finite(reply.total_s),
            "elapsed_s": time.monotonic() - start,
            "gaussians": reply.gaussians,
            "miner_version": printable(reply.miner_version, 64),
            "understood": tuple(for_log(reply.understood)),
            "ignored": tuple(for_log(reply.ignored)),
            "problems": problems,
        }
    ), asset


async def _cause(exchange: Exchange, settings: TrialSettings) -> str:
    """Returns why there is no result: on whose side the fault is, and what to do."""
    fault = exchange.fault()
    if not exchange.is_axon:
        # TLS ports close the connection, answer no HTTP, or send a page of status 400.
        doubtful = exchange.http_status in (None, 400) and exchange.status != 408
        if doubtful and exchange.reached and await _speaks_tls(*settings.address):
            return f"{exchange.host} speaks TLS, an axon does not; is --miner the right port?"
        if not exchange.reached:
            return f"{fault}; is the miner running, and --miner right?"
        return fault
    if exchange.status == 401:
        named = _RECEIVER.search(str(exchange.reply.dendrite.status_message))
        if named is not None and named[1] != settings.miner_hotkey:
            return (
                f"the axon at {exchange.host} has the hotkey {named[1]}, not --miner.hotkey "
                f"{settings.miner_hotkey}"
            )
        if "signature" in fault.lower():
            return (
                f"the axon at {exchange.host} does not have --miner.hotkey "
                f"{settings.miner_hotkey}; a miner logs its hotkey when it starts ({fault})"
            )
        return f"the axon did not verify the request: {fault}"
    if exchange.status == 403:
        return f"the miner refuses this validator: {fault}"
    if exchange.status == 404:
        return f"the axon at {exchange.host} is no miner's, it does not take tasks: {fault}"
    return fault


async def _speaks_tls(host: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
