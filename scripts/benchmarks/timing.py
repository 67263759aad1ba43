"""The one stopwatch of the benchmarks."""

import statistics
import time
from collections.abc import Callable

WARM_UP, REPEATS = 2, 9


def median_ms(action: Callable[[], object], *, device: str = "cpu") -> float:
    """Median milliseconds of an action after a warm-up; waits for the GPU before each reading."""
    times = []
    for _ in range(WARM_UP + REPEATS):
        wait(device)
        start = time.perf_counter()
        action()
        wait(device)
        times.append(1000.0 * (time.perf_counter() - start))
    return statistics.median(times[WARM_UP:])


def wait(device: str) -> None:
    """Waits until the device has done what it was asked."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
