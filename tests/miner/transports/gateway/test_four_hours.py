"""Four virtual hours of a worker and two nodes of the mock gateway, over real HTTP.

The transport, its calls, the service with its guard and the mock's servers are the real ones; the
engine is not, and waiting takes no time.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from generation.scoring.validity import ValidityReport, check
from miner.mock_gateway.faults import Fault, FaultPlan
from miner.mock_gateway.limits import MinuteWindows
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.rules import GatewayRules
from miner.mock_gateway.server import GatewayServer
from miner.mock_gateway.store import StoredTask
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.clocks import SteadyClock
from miner.transports.gateway.calls import GatewayCalls
from miner.transports.gateway.nodes import Nodes
from miner.transports.gateway.state import GatewayState, GatewayStateFile
from miner.transports.gateway.worker import GatewayTransport
from protocol.gateway import ADD_RESULT, GET_TASKS, SPLATS, TasksAnswer
from scripts.free_port import free_port
from tests.support.fakes import FakeEngine, ball, picture
from tests.support.virtual_time import clock, in_virtual_time

HOURS_4_S = 4 * 3600.0
BEGIN = 1_782_345_678.0
SHARES: dict[Fault, float] = {
    "unauthorized": 0.01,
    "gone": 0.01,
    "limited": 0.01,
    "failed": 0.02,
    "busy": 0.02,
    "unstored": 0.01,
    "lost": 0.01,
    "slow": 0.02,
}
"""What goes wrong with a call: one in ten has a fault."""


class Key:
    """A hotkey whose signature is cheap to check; `test_calls.py` has a real one."""

    ss58_address = "5Worker"

    def sign(self, text: str) -> bytes:
        return text.encode().ljust(64, b".")


def verify(hotkey: str, payload: bytes, signature: bytes) -> bool:
    return hotkey == Key.ss58_address and signature == payload.ljust(64, b".")


class Windows(MinuteWindows):
    """Counts the calls beyond the limit."""

    refused = 0

    def allow(self, address: str) -> bool:
        allowed = super().allow(address)
        self.refused += not allowed
        return allowed


class MemoryFile(GatewayStateFile):
    """Keeps the last state in memory: a virtual hour has hundreds of saves."""

    def load(self) -> GatewayState:
        self.state = GatewayState(hotkey=Key.ss58_address)
        return self.state

    def save(self, state: GatewayState) -> None:
        self.state = state


class NotedCalls(GatewayCalls):
    """Notes when it is asked."""

    asked: list[tuple[float, str]]

    async def get_tasks(self, address: str, count: int) -> TasksAnswer:
        self.asked.append((clock(), address))
        return await super().get_tasks(address, count)


@dataclass
class Run:
    """What four hours have come to.

    Attributes:
        cluster: The gateway.
        endings: Of the worker's lines `delivered`, by task.
        outcomes: How many answers have which.
        submitted: Tasks that clients have submitted, with the time.
        kept: Tasks that the worker still has in its book.
        asked: When the worker asked, and which node.
        over_limit: Calls that the gateway's limiter refused.
    """

    cluster: MockCluster
    endings: dict[str, list[str]] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    submitted: dict[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    asked: list[tuple[float, str]] = field(default_factory=list)
    over_limit: int = 0

    def events(self, kind: str) -> list[str]:
        """Ids of the tasks with this event, over all nodes."""
        return [
            event.task_id
            for node in self.cluster.nodes
            for event in node.store.events
            if event.kind == kind
        ]


async def serve(
    folder: Path,
    *,
    seconds: float,
    every_s: float,
    shares: dict[Fault, float] | None = None,
    offset_s: float = 0.0,
    seed: int = 1,
    halfway: Callable[[MockCluster], None] = lambda cluster: None,
) -> Run:
    """Lets clients submit a task every `every_s` seconds, and returns what became of them.

    Args:
        folder: Receives the score log.
        seconds: In which tasks are submitted.
        every_s: Between two tasks, on average.
        shares: Of calls that go wrong.
        offset_s: Seconds that the gateway's clock is ahead.
        seed: Of all chance.
        halfway: Is called when half of the time is over.
    """
    chance = random.Random(seed)

    def ours() -> float:
        return BEGIN + asyncio.get_running_loop().time() - 1000.0

    cluster = MockCluster(
        GatewayRules(),
        verify=verify,
        is_hotkey=lambda text: text == Key.ss58_address,
        clock=lambda: ours() + offset_s,
        faults=FaultPlan(shares or {}, chance=chance.random),
        random_numbers=chance,
    )
    run = Run(cluster)
    servers = []
    for _ in range(2):
        port = free_port()
        node = cluster.add_node("127.0.0.1", port)
        node.results = Windows(cluster.rules.results_per_minute, cluster.clock)
        servers.append(GatewayServer(node, ip="127.0.0.1", port=port, slow_s=8.0))
        await servers[-1].start()

    log = ScoreLog(folder, max_mebibytes=100)
    engine = FakeEngine()
    engine.takes_time = True
    service = MinerService([engine], log, budget_s=30.0, margin_s=0.2, clock=clock)
    calls = NotedCalls(Key(), worker_id="worker", clock=SteadyClock(ours, clock))
    calls.asked = run.asked
    file = MemoryFile(folder / "state.json", Key.ss58_address)
    transport = GatewayTransport(
        service,
        log,
        calls=calls,
        nodes=Nodes(
            [f"http://127.0.0.1:{node.port}" for node in cluster.nodes],
            clock=calls.clock,
            chance=chance.random,
        ),
        state_file=file,
        workers=2,
        monotonic=clock,
    )
    await transport.serve()
    await service.start()

    asyncio.get_running_loop().call_later(seconds / 2, halfway, cluster)
    end = clock() + seconds
    while clock() < end:
        await asyncio.sleep(chance.expovariate(1.0 / every_s))
        stored = StoredTask(cluster.new_id(), "client", SPLATS, chance.randrange(-(2**31), 2**31))
        if chance.random() < 0.3:
            stored.image = picture()
        else:
            stored.prompt = "a red car"
        assert chance.choice(cluster.nodes).store.add(stored)
        run.submitted[stored.id] = ours()
    await asyncio.sleep(660.0)  # What is under way ends, or is timed out.

    await service.drain()
    await transport.close()
    await service.close()
    log.close()
    for server in servers:
        await server.stop()
    for line in map(json.loads, log.path.read_text().splitlines()):
        if line["event"] == "delivered":
            run.endings.setdefault(line["task_id"], []).append(line["ending"])
        elif line["event"] == "answered":
            run.outcomes[line["outcome"]] += 1
    run.kept = tuple(task.id for task in file.state.tasks)
    run.over_limit = sum(node.results.refused for node in cluster.nodes)  # type: ignore[attr-defined]
    return run


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch, inline: None) -> Any:
    known: list[ValidityReport] = [check(ball())]
    monkeypatch.setattr("tests.support.fakes.check", lambda cloud: known[0])
    monkeypatch.setattr("miner.score.log.WAIT_S", 0.0)  # Nobody waits for lines before the end.
    logger.disable("miner")
    yield
    logger.enable("miner")


@pytest.mark.usefixtures("brisk")
@in_virtual_time
async def test_four_hours_with_one_call_in_ten_going_wrong(tmp_path: Path) -> None:
    """Each task that the worker knows of ends once, and no limit of the gateway is touched."""
    run = await serve(tmp_path, seconds=HOURS_4_S, every_s=28.0, shares=SHARES, offset_s=-3.0)
    injected = run.cluster.faults.injected
    assert min(injected[GET_TASKS, fault] for fault in ("failed", "lost", "slow", "limited")) > 10
    assert min(injected[ADD_RESULT, fault] for fault in ("failed", "lost", "busy", "gone")) > 1

    # Every task was handed out, and each that arrived has exactly one end.
    taken = run.events("task_assigned")
    assert sorted(taken) == sorted(run.submitted)
    assert len(taken) > 450
    assert set(map(len, run.endings.values())) == {1}
    assert run.kept == ()
    never_arrived = set(taken) - set(run.endings)
    assert len(never_arrived) <= injected[GET_TASKS, "lost"]

    # The gateway counts one result or failure for each, but for those whose call it refused.
    ended = Counter(run.events("result_success") + run.events("result_failure"))
    assert set(ended.values()) == {1}
    refused = injected[ADD_RESULT, "gone"] + injected[ADD_RESULT, "unauthorized"]
    assert len(run.events("timeout")) <= len(never_arrived) + refused
    attainable = len(taken) - len(never_arrived) - injected[ADD_RESULT, "gone"]
    assert len(run.events("result_success")) >= 0.99 * attainable

    assert run.over_limit == 0
    again = [b - a for (a, _), (b, _) in pairwise(run.asked) if b - a < 1.0]
    # Signed again at once: after a 401, and at first by this machine's clock, which is 3 s ahead.
    assert len(again) <= injected[GET_TASKS, "unauthorized"] + len(run.cluster.nodes)
    assert "lost" not in {ending for (ending,) in run.endings.values()}


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize("offset_s", [-3600.0, -1.0, 0.0, 29.0, 3600.0])
@in_virtual_time
async def test_no_clock_costs_a_result(tmp_path: Path, offset_s: float) -> None:
    run = await serve(tmp_path, seconds=300.0, every_s=30.0, offset_s=offset_s, seed=3)
    assert len(run.submitted) > 5
    assert run.endings == {task_id: ["delivered"] for task_id in run.submitted}
    assert len(run.events("result_success")) == len(run.submitted)


@pytest.mark.usefixtures("brisk")
@in_virtual_time
async def test_nodes_that_are_restarted_lose_their_tasks_and_nothing_else(tmp_path: Path) -> None:
    def restart(cluster: MockCluster) -> None:
        last = [node.store.events[-1].kind for node in cluster.nodes if node.store.events]
        if "task_assigned" not in last:  # The worker has none just now.
            asyncio.get_running_loop().call_later(0.5, restart, cluster)
            return
        for node in cluster.nodes:
            node.restart()

    run = await serve(tmp_path, seconds=400.0, every_s=6.0, seed=5, halfway=restart)
    endings = Counter(ending for (ending,) in run.endings.values())
    assert set(endings) == {"delivered", "gone"}
    assert 1 <= endings["gone"] <= 4  # Two in generation, and those on their way.
    assert run.kept == ()
