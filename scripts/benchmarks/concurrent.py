"""Several tasks at a time: how many objects a second, and which step of which task took long."""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from generation.plan import StepEvent
from generation.result import Generation
from scripts.benchmarks.timing import quantiles, seconds_by_stage

Figures = dict[str, Any]


class Asks(Protocol):
    """Makes an object of a new task, and returns its seconds, too."""

    def __call__(self, *, on_event: Callable[[StepEvent], None]) -> Any:
        """Returns an awaitable of the object and the seconds."""


@dataclass
class _Row:
    """One task.

    Attributes:
        total: Seconds from asking to the file.
        steps: In the order in which they ended; see `throughput`.
    """

    total: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)


async def throughput(
    ask: Asks, concurrency: int, requests: int, stages: Sequence[str], alone: Mapping[str, Any]
) -> Figures:
    """Keeps `concurrency` tasks under way until `requests` are done.

    Args:
        ask: Asks for one object.
        concurrency: Tasks at a time.
        requests: Tasks in all.
        stages: Their stages.
        alone: `seconds` of tasks that had the machine to themselves, by stage and `total`.

    Returns:
        `objects_per_s`; quantiles of the latency and of each stage; `own_time_ratio`, the largest
        time of a task's own steps over the median of a task alone; `rows`, for each task `total`
        and its `steps`: stage, when it began after the first task was asked for, seconds that it
        ran and waited for its lane; `slowest`, see `slowest_step`; `collections_s`, seconds of each
        full garbage collection.
    """
    waiting = iter(range(requests))
    rows: list[_Row] = []
    timings: list[Mapping[str, float]] = []
    begin = time.perf_counter()

    async def keep_asking() -> None:
        for _ in waiting:
            row = _Row()

            def note(event: StepEvent, row: _Row = row) -> None:
                if event.kind == "finished":
                    began = time.perf_counter() - begin - event.ran_s
                    row.steps.append(
                        {
                            "stage": event.step.stage,
                            "began_s": began,
                            "ran_s": event.ran_s,
                            "waited_s": event.waited_s,
                        }
                    )

            result: Generation
            result, row.total = await ask(on_event=note)
            rows.append(row)
            timings.append(result.timings)

    with _full_collections() as collections:
        await asyncio.gather(*(keep_asking() for _ in range(concurrency)))
    latencies = [row.total for row in rows]
    kept = [{"total": row.total, "steps": row.steps} for row in rows]
    return {
        "requests": requests,
        "objects_per_s": requests / (time.perf_counter() - begin),
        "latency_s": quantiles(latencies) | {"max": max(latencies)},
        "seconds": seconds_by_stage(timings, stages),
        # Without waiting, against a task that had the machine to itself.
        "own_time_ratio": max(sum(row.values()) for row in timings) / alone["total"]["median"],
        "rows": kept,
        "slowest": slowest_step(kept, {name: alone[name]["median"] for name in stages}),
        "collections_s": collections,
    }


def slowest_step(rows: Sequence[Figures], alone: Mapping[str, float]) -> Figures:
    """Finds the step that ran longest beyond what its stage takes in a task alone.

    Args:
        rows: See `throughput`.
        alone: Seconds of each stage; those of a stage with several steps are shared by them.

    Returns:
        `task` (its place in the rows), `stage`, `ran_s`, `alone_s`, and `beside`: the stages of
        other tasks that ran at the same time, with the seconds.
    """
    excess: list[tuple[float, int, Figures]] = []
    for place, row in enumerate(rows):
        stages = [step["stage"] for step in row["steps"]]
        excess += [
            (step["ran_s"] - alone[step["stage"]] / stages.count(step["stage"]), place, step)
            for step in row["steps"]
        ]
    most, task, found = max(excess, key=lambda entry: entry[0])
    beside: dict[str, float] = {}
    for place, row in enumerate(rows):
        for step in row["steps"] if place != task else ():
            begin = max(step["began_s"], found["began_s"])
            end = min(step["began_s"] + step["ran_s"], found["began_s"] + found["ran_s"])
            if end > begin:
                beside[step["stage"]] = beside.get(step["stage"], 0.0) + end - begin
    return {
        "task": task,
        "stage": found["stage"],
        "ran_s": found["ran_s"],
        "alone_s": found["ran_s"] - most,
        "beside": beside,
    }


@contextmanager
def _full_collections() -> Iterator[list[float]]:
    """Collects the seconds of garbage collections of all generations, which stop every thread."""
    seconds: list[float] = []
    begins: list[float] = []

    def note(phase: str, info: Mapping[str, int]) -> None:
        if info["generation"] < 2:
            return
        if phase == "start":
            begins.append(time.perf_counter())
        elif begins:
            seconds.append(time.perf_counter() - begins.pop())

    gc.callbacks.append(note)
    try:
        yield seconds
    finally:
        gc.callbacks.remove(note)
