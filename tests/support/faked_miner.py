"""`python -m neurons.miner` with a real engine whose stages do what the prompts say.

A prompt asks for a fault: "hang in lift", "0.5 s in lift", "out of memory in lift", "nan in
splats", "kill the thread in lift", "hold the interpreter in lift". Any other prompt makes the same
ball every time. The environment sets the rest:

- FAKED_MINER_S: seconds that the stage `lift` takes, except in the warm-up.
- FAKED_HANGS: "loading" or "warm-up".
- FAKED_LIMIT_S, FAKED_RECOVERY_S: how long a step may run at least, and its engine stay suspect.
"""

import os
import re
import sys
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from generation import engine
from generation.engine import Engine
from generation.presets import PRESETS
from generation.scoring.validity import check
from generation.stage import Asset, StageFunction, StepContext
from miner.engines.local import LocalEngine
from miner.scheduling import scheduler, watchdog
from neurons.miner import main
from protocol.gaussians import GaussianCloud
from protocol.tasks import TextTask
from tests.support.fake_stages import FakeStages
from tests.support.fakes import ball, ball_spz

_FAULT = re.compile(
    r"(?P<what>hang|[\d.]+ s|out of memory|nan|kill the thread|hold the interpreter)"
    r" in (?P<stage>\w+)"
)


def asked_for(stage: str, context: StepContext) -> "re.Match[str] | None":
    """The fault that the task's prompt asks for in this stage."""
    asked = _FAULT.fullmatch(context.task.prompt) if isinstance(context.task, TextTask) else None
    return asked if asked is not None and asked["stage"] == stage else None


def fault(stage: str, context: StepContext) -> None:
    """Does what the task's prompt asks for in this stage."""
    if context.task.id == "warm-up":
        if os.environ.get("FAKED_HANGS") == "warm-up":
            time.sleep(3600.0)
        return
    if stage == "lift":
        time.sleep(float(os.environ.get("FAKED_MINER_S", "0")))
    asked = asked_for(stage, context)
    match asked and asked["what"]:
        case None | "nan":
            return
        case "hang":
            time.sleep(3600.0)
        case "out of memory":
            raise MemoryError
        case "kill the thread":
            raise SystemExit("killed")
        case "hold the interpreter":
            sum(range(10**15))  # One call of C code that never lets another thread run.
        case seconds:
            time.sleep(float(str(seconds).removesuffix(" s")))


def splats(code: Any, context: StepContext) -> GaussianCloud:
    """The ball; where a network's output is NaN, no cloud can be made of it."""
    fault("splats", context)
    asked = asked_for("splats", context)
    if asked is not None and asked["what"] == "nan":
        return replace(ball(), positions=np.full_like(ball().positions, np.nan))
    return ball()


def encode(cloud: GaussianCloud, context: StepContext) -> Asset:
    """The ball as a file."""
    fault("encode", context)
    return Asset(cloud, ball_spz(), check(cloud))


def load(*_: Any) -> Any:
    """Stands for `generation.loading.load`."""
    if os.environ.get("FAKED_HANGS") == "loading":
        time.sleep(3600.0)
    stages = FakeStages()
    stages.on_call = fault
    functions: dict[str, StageFunction] = {**stages.functions(), "splats": splats, "encode": encode}
    return SimpleNamespace(
        functions=functions, drop_caches=lambda: None, remembers=stages.remembers
    )


if __name__ == "__main__":
    embedded = PRESETS["embedded"].model_copy(update={"vocabulary": ()})  # Any prompt is taken.
    PRESETS["embedded"] = embedded
    engine._load = load  # type: ignore[assignment]
    LocalEngine.machine = "faked"  # type: ignore[assignment]
    (Engine.close.__kwdefaults__ or {})["limit_s"] = 1.0
    if "FAKED_LIMIT_S" in os.environ:
        watchdog.LIMIT_FLOOR_S = float(os.environ["FAKED_LIMIT_S"])
    if "FAKED_RECOVERY_S" in os.environ:
        recovery = float(os.environ["FAKED_RECOVERY_S"])
        watchdog.RECOVERY_S = scheduler.RECOVERY_S = recovery  # type: ignore[attr-defined]
    sys.exit(main())
