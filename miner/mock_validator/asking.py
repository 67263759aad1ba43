"""The push side of a trial: tasks are sent to the miner's axon, and the answers judged."""

import asyncio
import base64
import binascii
import time
from collections.abc import Callable, Sequence
from typing import Any

from miner.chain.metagraph import Neuron
from miner.mock_validator.records import TrialRecord, judge
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask
from miner.transports.pull.dendrite import offline_dendrite
from protocol.synapses import GenerateAsset


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
    # A Dendrite reads only ip, port and hotkey of its target.
    reply = await dendrite.call(miner, request, timeout=settings.timeout, deserialize=False)
    status = int(reply.dendrite.status_code or 0)
    answered = status == 200
    reason, asset = reply.reason, b""
    if not answered:
        reason = f"status {status}: {reply.dendrite.status_message}"
    try:
        asset = base64.b64decode(reply.results, validate=True)
    except binascii.Error as error:
        reason = f"results are not base64: {error}"
    record = TrialRecord(
        name=task.name,
        kind=task.kind,
        prompt=task.shown,
        task_id=task.id,
        seed=settings.seed,
        status=status,
        outcome=reply.outcome if answered else "none",
        reason_code=reply.reason_code if answered else "",
        reason=reason,
        timings=reply.timings if answered else {},
        total_s=reply.total_s if answered else 0.0,
        elapsed_s=time.monotonic() - start,
        gaussians=reply.gaussians if answered else 0,
        miner_version=reply.miner_version if answered else "",
    )
    return record, asset
