"""A worker of a gateway without a network, in virtual time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.clocks import SteadyClock
from miner.transports.gateway.calls import GatewayFault
from miner.transports.gateway.nodes import Nodes
from miner.transports.gateway.state import GatewayState, GatewayStateFile, TakenTask
from miner.transports.gateway.worker import GatewayTransport
from protocol.gateway import (
    CONTEXT_UNAVAILABLE,
    NOT_ASSIGNED,
    NOT_WHITELISTED,
    GatewayNode,
    GatewayTask,
    TasksAnswer,
)
from tests.support.fakes import FakeEngine
from tests.support.virtual_time import clock

START = 1_782_345_678.0
EU, US = "https://eu.example", "https://us.example"


def fault(status: int = 0, answer: str = "", **fields: Any) -> GatewayFault:
    """What a call raises that had this answer."""
    return GatewayFault(f"eu.example answered {status}", status=status, answer=answer, **fields)


CLOSED = fault(401, f"Unauthorized request: {NOT_WHITELISTED}")
STALE = fault(401, "Unauthorized request: Invalid worker authentication")
UNASSIGNED = fault(401, f"Unauthorized request: {NOT_ASSIGNED}")
GONE = fault(410, CONTEXT_UNAVAILABLE["message"])
CUT_OFF = fault()
NOT_SENT = fault(arrived=False)


def task(task_id: str = "t-1", **fields: Any) -> GatewayTask:
    """A task as a gateway hands it out."""
    values = {"prompt": "a red car", "assignment_token": f"token of {task_id}", **fields}
    return GatewayTask.model_validate({"id": task_id, **values})


def node(address: str, queued: int = 0) -> GatewayNode:
    """An entry of a list of gateways."""
    domain = address.removeprefix("https://")
    return GatewayNode(domain=domain, http_port=443, available_tasks=queued)


class StubCalls:
    """Returns the answers that a test sets, and remembers what it was sent, and when."""

    worker_id = "worker"
    hotkey = "5Worker"

    def __init__(self) -> None:
        self.clock = SteadyClock(lambda: START + clock() - 1000.0, clock)
        self.polls: list[TasksAnswer | GatewayTask | Exception] = []
        self.answers: list[Exception | None] = []
        self.asked: list[tuple[float, str, int]] = []
        self.sent: list[tuple[float, str, str | None, bytes | None, str]] = []
        self.off_s = 0.0
        self.call_s = 0.1
        self.closed = False

    async def get_tasks(self, address: str, count: int) -> TasksAnswer:
        self.asked.append((clock(), address, count))
        await asyncio.sleep(self.call_s)
        answer = self.polls.pop(0) if self.polls else TasksAnswer()
        if isinstance(answer, Exception):
            raise answer
        return TasksAnswer((answer,)) if isinstance(answer, GatewayTask) else answer

    async def add_result(
        self, task: TakenTask, token: str | None, *, asset: bytes | None, reason: str = ""
    ) -> None:
        self.sent.append((clock(), task.id, token, asset, reason))
        await asyncio.sleep(self.call_s)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer

    def clock_off(self, address: str) -> float:
        return self.off_s

    async def close(self) -> None:
        self.closed = True


class Working:
    """A worker on a fake engine; a text takes it 5.2 s."""

    def __init__(
        self, folder: Path, *, addresses: tuple[str, ...] = (EU,), **settings: Any
    ) -> None:
        self.engine = settings.pop("engine", None) or FakeEngine()
        self.engine.takes_time = True
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [self.engine], self.log, budget_s=30.0, margin_s=0.2, clock=clock
        )
        self.calls = StubCalls()
        self.file = GatewayStateFile(folder / "gateway-state.json", "5Worker")
        nodes = Nodes(
            addresses,
            clock=self.calls.clock,
            discover=settings.pop("discover", False),
            chance=lambda: 0.5,
        )
        self.nodes = nodes
        self.transport = GatewayTransport(
            self.service,
            self.log,
            calls=self.calls,  # type: ignore[arg-type]
            nodes=nodes,
            state_file=self.file,
            monotonic=clock,
            **settings,
        )

    def events(self, *names: str) -> list[dict[str, Any]]:
        assert self.log.flush()
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]

    def saved(self) -> GatewayState:
        """What the state file holds now."""
        return GatewayState.model_validate_json(self.file._path.read_bytes())

    @property
    def ended(self) -> list[tuple[str, str]]:
        """Id and ending of every settled task, in order."""
        return [(line["task_id"], line["ending"]) for line in self.events("delivered")]


@asynccontextmanager
async def working(folder: Path, **settings: Any) -> AsyncIterator[Working]:
    """A worker that has not begun: `begin` starts it; it ends with the block."""
    worker = Working(folder, **settings)
    try:
        yield worker
    finally:
        await worker.service.drain()
        await worker.transport.close()
        await worker.service.close()
        worker.log.close()


async def begin(worker: Working) -> None:
    """Starts a worker as the program does."""
    await worker.transport.serve()
    await worker.service.start()
