"""`python -m neurons.miner`, whose stages fail on command and whose clock can be set.

The prompts in `FAULTS` make a stage of the real engine fail; any other task is generated. Set
`SOAK_CLOCK_FILE` to a file of eight bytes, a little-endian double: the process' wall clock is ahead
by so many seconds. With `SOAK_REPEAT` set, every stage repeats what it made in the warm-up, so that
thousands of requests can be served.
"""

import mmap
import os
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from generation import engine
from generation.stage import StageFunction, StepContext
from protocol.tasks import TextTask

OUT_OF_MEMORY = "a box out of memory"
NOT_A_NUMBER = "a box of not a number"
HUNG = "a box that hangs"
FAULTS = (OUT_OF_MEMORY, NOT_A_NUMBER, HUNG)

HANG_S = 6.0
"""Beyond the limit of a step, so that the engine is suspected, and short enough to come back."""

CLOCK_VARIABLE = "SOAK_CLOCK_FILE"
REPEAT_VARIABLE = "SOAK_REPEAT"


def _set_clock(file: str) -> None:
    with open(file, "r+b") as opened:
        shared = mmap.mmap(opened.fileno(), 8)
    seconds, nanoseconds = time.time, time.time_ns

    def ahead() -> float:
        return float(struct.unpack("<d", shared[:])[0])

    time.time = lambda: seconds() + ahead()
    time.time_ns = lambda: nanoseconds() + int(1e9 * ahead())


def _failing(stage: str, work: StageFunction) -> StageFunction:
    def fail_or_work(value: Any, context: StepContext) -> Any:
        prompt = context.task.prompt if isinstance(context.task, TextTask) else ""
        if stage == "lift" and prompt == OUT_OF_MEMORY:
            raise MemoryError
        if stage == "lift" and prompt == HUNG:
            time.sleep(HANG_S)
        if stage == "encode" and prompt == NOT_A_NUMBER:
            lost = np.full_like(value.cloud.positions, np.nan)
            value = replace(value, cloud=replace(value.cloud, positions=lost))
        return work(value, context)

    return fail_or_work


def _repeating(work: StageFunction) -> StageFunction:
    made: dict[tuple[str, int], Any] = {}

    def make_or_repeat(value: Any, context: StepContext) -> Any:
        key = (context.rung.name, context.index)
        if context.task.id == "warm-up" or key not in made:
            made[key] = work(value, context)
        return made[key]

    return make_or_repeat


def _with_faults(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_with_faults(*arguments: Any) -> Any:
        loaded = load(*arguments)
        functions = {name: _failing(name, work) for name, work in loaded.functions.items()}
        if os.environ.get(REPEAT_VARIABLE):
            functions = {name: _repeating(work) for name, work in functions.items()}
        return replace(loaded, functions=functions)

    return load_with_faults


if __name__ == "__main__":
    _set_clock(os.environ[CLOCK_VARIABLE])
    engine._load = _with_faults(engine._load)
    from neurons.miner import main

    sys.exit(main())
