"""The pull side of a trial: tasks are served on an axon until the miner has done them all."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from miner.chain.signatures import verify
from miner.mock_validator.pull_axon import PullAxon
from miner.mock_validator.pull_rules import Rules
from miner.mock_validator.pull_trial import PullTrial, Terms
from miner.mock_validator.records import TrialRecord
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask

POLL_S = 0.25
"""Seconds that the thread waits at a time: after Ctrl-C, it would hold the process."""


async def serve_all(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    """Serves the tasks until the miner has submitted results for all, or the time is up.

    Args:
        settings: The trial.
        wallet: The validator's wallet.
        tasks: The tasks, in the order in which they are assigned.
        on_record: Called with the record of each task that has its end.

    Returns:
        The records, in the order of the tasks, also of those without a result.

    Raises:
        SetupError: The port cannot be used.
    """
    rules = Rules(
        threshold=settings.rules.threshold,
        cooldown_s=settings.rules.cooldown,
        throttle_s=settings.rules.throttle,
        penalty_s=settings.rules.penalty,
        lock_s=min(Rules.lock_s, settings.rules.cooldown),
    )
    hotkey = wallet.hotkey.ss58_address
    terms = Terms(hotkey, settings.miner_hotkey, rules, settings.timeout, settings.out)

    def clock() -> float:
        return time.time() + settings.clock.offset

    trial = PullTrial(tasks, terms, verify=verify, on_record=on_record, clock=clock)
    axon = PullAxon(
        trial,
        wallet,
        ip=settings.axon.ip,
        port=settings.axon.port,
        clock=clock if settings.clock.offset else None,
    )
    await axon.start()
    ends = time.monotonic() + settings.wait
    try:
        while not await asyncio.to_thread(trial.finished, POLL_S) and time.monotonic() < ends:
            pass
    finally:
        await axon.stop()
    return trial.records()
