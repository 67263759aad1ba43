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
from miner.engines.ray_engine import EngineActor, RayLink, RayProcess
from miner.engines.remote import LinkedEngine
from miner.settings.engines import EnginesSettings
from tests.support.fake_stages import FakeStages
from tests.support.fakes import ball
from tests.support.far_engines import far_settings

STEP_S = 0.02


class ToyActor(EngineActor):
    """Every stage takes `STEP_S`; the cloud is always the same."""

    def __init__(self) -> None:
        super().__init__()
        self._make_engine = _toy_engine


def _toy_engine(settings: GenerationSettings, models_dir: Path | None) -> Engine:
    stages = FakeStages()
    stages.result = ball()

    def take_time(stage: str, context: StepContext) -> None:
        time.sleep(STEP_S)

    stages.on_call = take_time
    functions, remembers = stages.functions(), stages.remembers
    return Engine(settings, functions=functions, remembers=remembers, progress=False)


def toy_ray(cores: int) -> RayProcess:
    """Ray on this machine, for engines of this kind."""
    return RayProcess(EnginesSettings(kind="ray"), cores=cores)


def toy_engine(ray: RayProcess, number: int) -> LinkedEngine:
    """An engine that Ray places."""
    settings = far_settings()
    return LinkedEngine(settings, ray.opener(settings, number, ToyActor), name=f"ray{number}")


def process_of(engine: LinkedEngine) -> int:
    """The number of the process that an engine has now."""
    assert isinstance(engine.link, RayLink)
    return engine.link.process


async def _front() -> None:
    # Imported, so that its actor is of this module and not of __main__.
    from tests.support import toy_actor

    engine = toy_actor.toy_engine(toy_actor.toy_ray(1), 0)
    await engine.start()
    sys.stdout.write(f"{os.getpid()} {process_of(engine)}\n")
    sys.stdout.flush()
    await asyncio.sleep(1000.0)


if __name__ == "__main__":
    asyncio.run(_front())
