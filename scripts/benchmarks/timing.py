"""The one stopwatch of the benchmarks, and what they say of what it showed."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

WARM_UP, REPEATS = 2, 9
LONG_S, FEWEST = 4.0, 3
"""Seconds after which an action is not repeated again, once it has been repeated this often."""
DRAWING = ("prompt", "denoise", "decode")


def median_ms(action: Callable[[], object], *, device: str = "cpu") -> float:
    """Median milliseconds of an action after a warm-up; waits for the GPU before each reading."""
    times: list[float] = []
    begin = time.perf_counter()
    for _ in range(WARM_UP + REPEATS):
        if len(times) >= WARM_UP + FEWEST and time.perf_counter() - begin > LONG_S:
            break
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


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def seconds_by_stage(rows: Sequence[Mapping[str, float]], stages: Iterable[str]) -> dict[str, Any]:
    """Quantiles by stage, and of `text_to_image`: prompt, denoising and decoding together."""
    found = {name: quantiles([row[name] for row in rows]) for name in stages}
    drawing = quantiles([sum(row[name] for name in DRAWING) for row in rows])
    return {"text_to_image": drawing} | found
