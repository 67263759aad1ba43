"""How evenly the CPU runs, and how much of a task's time the GPU works: what a median rests on."""

import time
from collections.abc import Awaitable, Callable, Iterable

import numpy as np

_PIECE_S = 0.001


def cpu_noise(pieces: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Times equal pieces of Python work of about a millisecond each, one after the other.

    Returns:
        `p95_over_median` and `p99_over_median` of a piece, and `worst_ms`: on a quiet machine the
        first two are close to 1. What they exceed it by is not the program's.
    """
    rounds = _rounds(clock)
    seconds = []
    for _ in range(pieces):
        start = clock()
        _work(rounds)
        seconds.append(clock() - start)
    median, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return {
        "p95_over_median": float(p95 / median),
        "p99_over_median": float(p99 / median),
        "worst_ms": 1000 * max(seconds),
    }


async def gpu_busy_ms(tasks: int, ask: Callable[[], Awaitable[object]]) -> float:
    """Milliseconds for each task in which at least one kernel, copy or memset runs.

    Tracing slows the host and not the kernels, so compare the result with the time of a task that
    is not traced.

    Args:
        tasks: How many are traced, one after the other.
        ask: Does one task.
    """
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        for _ in range(tasks):
            await ask()
    spans = (
        (event.time_range.start, event.time_range.end)
        for event in trace.events() or ()
        if event.device_type == DeviceType.CUDA
    )
    return covered(spans) / 1000 / tasks


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end) spans."""
    total, reached = 0.0, -np.inf
    for start, end in sorted(spans):
        if end > reached:
            total += end - max(start, reached)
            reached = end
    return float(total)


def _rounds(clock: Callable[[], float]) -> int:
    """How many rounds of `_work` take about `_PIECE_S`."""
    rounds = 1_000
    while True:
        start = clock()
        _work(rounds)
        took = clock() - start
        if took >= _PIECE_S / 2:
            return max(1, round(rounds * _PIECE_S / took))
        rounds *= 2


def _work(rounds: int) -> int:
    value = 0
    for number in range(rounds):
        value ^= number
    return value
