"""`python -m neurons.miner` with an engine that makes the same ball in FAKED_MINER_S seconds."""

import asyncio
import os
import sys
from typing import Any

import miner.engines.local
from generation.engine import Generation
from neurons.miner import main
from tests.support.fakes import FakeEngine


class SlowEngine(FakeEngine):
    def __init__(self, settings: Any, **arguments: Any) -> None:
        super().__init__(name="local")
        self.delay = float(os.environ["FAKED_MINER_S"])

    async def run(self, *arguments: Any, **named: Any) -> Generation:
        await asyncio.sleep(self.delay)
        return await super().run(*arguments, **named)


if __name__ == "__main__":
    miner.engines.local.LocalEngine = SlowEngine  # type: ignore[assignment,misc]
    sys.exit(main())
