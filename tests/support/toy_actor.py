"""An engine with quick stages of its own as a Ray actor, and a front that can be killed.

`python -m tests.support.toy_actor` starts a front with one engine, prints the numbers of both
processes, and waits.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from generation.engine import Engine
from generation.settings import GenerationSettings
from generation.stage import StepContext
from miner.engines.ray_cluster import open_cluster, prepare
from miner.engines.remote import LinkedEngine
from miner.settings.engines import EnginesSettings
from tests.support.fake_stages import FakeStages
from tests.support.fakes import ball
from tests.support.far_engines import far_settings

prepare(own=True)

from miner.engines.ray_engine import EngineActor, RayLink, opener  # noqa: E402

STEP_S = 0.02


class ToyActor(EngineActor):
    """Every stage takes `STEP_S`; the cloud is always the same."""

    def __init__(self, core: int | None) -> None:
        super().__init__(core)
        self._make_engine = _toy_engine


def _toy_engine(settings: GenerationSettings, models_dir: Path | None) -> Engine:
    stages = FakeStages()
    stages.result = ball()

    def take_time(stage: str, context: StepContext) -> None:
        time.sleep(STEP_S)

    stages.on_call = take_time
    functions, remembers = stages.functions(), stages.remembers
    return Engine(settings, functions=functions, remembers=remembers, progress=False)


def toy_engine(number: int) -> LinkedEngine:
    """An engine on the cluster that was opened."""
    settings = far_settings()
    return LinkedEngine(settings, opener(settings, number, ToyActor), name=f"ray{number}")


def process_of(engine: LinkedEngine) -> int:
    """The number of the process that an engine has now."""
    assert isinstance(engine.link, RayLink)
    return engine.link.process


async def _front() -> None:
    engine = toy_engine(0)
    await engine.start()
    sys.stdout.write(f"{os.getpid()} {process_of(engine)}\n")
    sys.stdout.flush()
    await asyncio.sleep(1000.0)


if __name__ == "__main__":
    open_cluster(EnginesSettings(kind="ray"), cores=1)
    asyncio.run(_front())
