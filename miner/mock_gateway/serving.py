"""The gateway's side of a trial: nodes on this machine, until workers have done every task."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from miner.chain.signatures import is_hotkey, verify
from miner.mock_gateway.faults import FaultPlan
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.rules import GatewayRules, KeyOwner
from miner.mock_gateway.server import GatewayServer
from miner.mock_gateway.trial import GatewayTerms, GatewayTrial
from miner.mock_validator.records import TrialRecord
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask

LOOK_S = 1.0
"""Seconds between two checks for tasks that have timed out, in case no call comes in."""


async def serve_gateway(
    settings: TrialSettings,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> list[TrialRecord]:
    """Serves nodes until the tasks are over, or the time is up.

    Args:
        settings: The trial.
        tasks: The tasks, in the order in which they are submitted.
        on_record: Called with the record of each task that is over.

    Returns:
        The records, in the order of the tasks, also of those without a result.

    Raises:
        SetupError: A port cannot be used.
    """
    gateway, hotkey = settings.gateway, settings.miner_hotkey
    key = gateway.api_key.get_secret_value() if gateway.api_key else None
    rules = GatewayRules(
        copies=gateway.copies,
        task_life_s=gateway.life,
        queue_limit=max(GatewayRules.queue_limit, len(tasks)),
        whitelist=frozenset({hotkey} if hotkey else ()),
        keys={key: KeyOwner(key)} if key else {},
    )
    trial = GatewayTrial(
        tasks,
        GatewayTerms(settings.timeout, settings.out, settings.seed, gateway.open),
        on_record=on_record,
    )
    cluster = MockCluster(
        rules,
        verify=verify,
        is_hotkey=is_hotkey,
        clock=lambda: time.time() + settings.clock.offset,
        faults=FaultPlan(settings.faults.shares),
    )
    async with AsyncExitStack() as stack:
        servers = []
        for port in range(gateway.port, gateway.port + gateway.nodes):
            node = cluster.add_node(gateway.ip, port)
            server = GatewayServer(
                node,
                ip=gateway.ip,
                port=port,
                slow_s=settings.faults.slow_for,
                storing_s=settings.faults.storing,
            )
            stack.push_async_callback(server.stop)
            servers.append(server)
        trial.watch(cluster)
        for server in servers:
            await server.start()
        looking = asyncio.create_task(_look(cluster))
        stack.callback(looking.cancel)
        await trial.finished(settings.wait)
    return trial.records()


async def _look(cluster: MockCluster) -> None:
    while True:
        for node in cluster.nodes:
            node.store.sweep()
        await asyncio.sleep(LOOK_S)
