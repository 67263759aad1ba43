"""`python -m neurons.miner` with a generator that makes the same ball in FAKED_MINER_S seconds."""

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Any

import generation.pipeline
from generation.pipeline import Generation
from neurons.miner import main
from protocol.tasks import Task
from tests.support.fakes import FakeGenerator


class SlowGenerator(FakeGenerator):
    def __init__(self, settings: Any, **arguments: Any) -> None:
        super().__init__()
        self.seconds = float(os.environ["FAKED_MINER_S"])

    async def start(self) -> Mapping[str, float]:
        return self.prior

    async def generate(self, task: Task, **arguments: Any) -> Generation:
        await asyncio.sleep(self.seconds)
        return await super().generate(task, **arguments)


if __name__ == "__main__":
    generation.pipeline.GenerationPipeline = SlowGenerator  # type: ignore[assignment,misc]
    sys.exit(main())
