"""A service on fake engines in virtual time, with its score log."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from miner.estimates_file import EstimatesFile
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from protocol.tasks import TextTask
from tests.support.fakes import FakeEngine
from tests.support.virtual_time import clock

CALLER = Caller("5Validator", 3, 5000.0)


class Bench:
    """A service, what it logs and what it warns of; use it in a `VirtualLoop`.

    Attributes:
        engines: What it generates with.
        warnings: What it told the operator, at level warning or above.
    """

    def __init__(
        self, folder: Path, engines: Sequence[FakeEngine] | None = None, **settings: Any
    ) -> None:
        self.engines = [FakeEngine()] if engines is None else list(engines)
        self.log = ScoreLog(folder)
        self.file = EstimatesFile(folder / "estimates.json")
        self.warnings: list[str] = []
        self._sink = logger.add(lambda text: self.warnings.append(str(text)), level="WARNING")
        values = {"budget_s": 30.0, "margin_s": 1.0, "estimates_file": self.file, **settings}
        self.service = MinerService(self.engines, self.log, clock=clock, **values)

    @property
    def engine(self) -> FakeEngine:
        """The first engine."""
        return self.engines[0]

    def request(self, name: str = "t", **fields: Any) -> Request:
        """A text task that is received now."""
        values = {
            "task": TextTask(id=name, prompt="a blue cube"),
            "caller": CALLER,
            "transport": "axon",
            "received_at": clock(),
            **fields,
        }
        return Request(**values)

    async def handle(self, name: str = "t", **fields: Any) -> Answer:
        """Asks and waits for the answer."""
        return await self.service.handle(self.request(name, **fields))

    def ask(self, name: str = "t", **fields: Any) -> "asyncio.Task[Answer]":
        """Asks beside the test."""
        return asyncio.create_task(self.handle(name, **fields))

    async def held(self, stage: str, name: str = "t", **fields: Any) -> "asyncio.Task[Answer]":
        """Asks, and returns once an engine is in a stage that does not end."""
        for engine in self.engines:
            engine.hold_at, engine.held_task = stage, name
        asking = self.ask(name, **fields)
        waiting = [asyncio.create_task(engine.holding.wait()) for engine in self.engines]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return asking

    def events(self, *names: str) -> list[dict[str, Any]]:
        """The lines of the score log with these events, or all."""
        assert self.log.flush()
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if not names or line["event"] in names]

    def answered(self, name: str = "t") -> dict[str, Any]:
        """The one `answered` line of a task."""
        (line,) = (event for event in self.events("answered") if event["task_id"] == name)
        return line

    @property
    def state(self) -> str:
        """Where the service is in its life."""
        return self.service.state.value

    def states(self) -> list[str]:
        """The states, in the order in which they were reached."""
        return [event["state"] for event in self.events("state_changed")]

    def close(self) -> None:
        """Closes the log."""
        self.log.close()
        logger.remove(self._sink)
