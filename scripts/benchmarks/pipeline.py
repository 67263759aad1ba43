"""Times a preset from prompt to asset: `python -m scripts.benchmark pipeline`."""

import asyncio
import json
import platform
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from generation.pipeline import STAGES, Generation, GenerationPipeline
from generation.presets import GenerationSettings, preset
from protocol.tasks import TextTask

PROMPTS = ("a blue cube", "a red sports car", "a detailed dragon statue", "a wooden chair")


def run(
    *,
    preset_name: str = "embedded",
    runs: int = 10,
    models_dir: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Prints a table of times by stage over warm text tasks, one after the other.

    Args:
        preset_name: The preset.
        runs: Number of tasks, after the warm-up.
        models_dir: The models folder; the default one when None.
        out: JSON file to write the same figures to, if any.

    Returns:
        `seconds` by stage and for `total` (each `median` and `p95`), `start_s` (loading and
        warm-up), `peak_memory_mb` (`host`, and `device` on CUDA; 10^6 bytes), and what was
        measured on what.

    Raises:
        SetupError: The preset cannot start.
    """
    settings = preset(preset_name)
    start_s, rows, spz_bytes = asyncio.run(_measure(settings, runs, models_dir))
    figures = {
        "preset": settings.name,
        "machine": _machine(settings.device),
        "runs": runs,
        "start_s": start_s,
        "seconds": {
            name: {
                "median": float(np.median([row[name] for row in rows])),
                "p95": float(np.percentile([row[name] for row in rows], 95)),
            }
            for name in (*STAGES, "total")
        },
        "spz_bytes": spz_bytes,
        "peak_memory_mb": _peak_memory(settings.device),
    }
    _print_table(figures)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


async def _measure(
    settings: GenerationSettings, runs: int, models_dir: Path | None
) -> tuple[float, list[dict[str, float]], int]:
    pipeline = GenerationPipeline(settings, models_dir=models_dir)
    try:
        begin = time.perf_counter()
        await pipeline.start()
        start_s = time.perf_counter() - begin
        rows, sizes = [], []
        for index in range(runs):
            task = TextTask(id=f"run-{index}", prompt=PROMPTS[index % len(PROMPTS)], seed=index)
            begin = time.perf_counter()
            result: Generation = await pipeline.generate(task)
            rows.append({**result.timings, "total": time.perf_counter() - begin})
            sizes.append(len(result.spz))
    finally:
        await pipeline.close()
    return start_s, rows, int(np.median(sizes))


def _machine(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _peak_memory(device: str) -> dict[str, float]:
    import torch

    # Linux counts in kibibytes.
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6}
    if device.startswith("cuda"):
        peak["device"] = torch.cuda.max_memory_reserved(device) / 1e6
    return peak


def _print_table(figures: dict[str, Any]) -> None:
    table = Table(title=f"preset {figures['preset']}, {figures['runs']} text tasks")
    table.add_column("stage")
    table.add_column("median ms", justify="right")
    table.add_column("p95 ms", justify="right")
    for name, row in figures["seconds"].items():
        if name == "total":
            table.add_section()
        table.add_row(name, f"{1000 * row['median']:.1f}", f"{1000 * row['p95']:.1f}")
    console = Console()
    console.print(table)
    memory = ", ".join(f"{k} {v:,.0f} MB" for k, v in figures["peak_memory_mb"].items())
    console.print(f"{figures['machine']}; start {figures['start_s']:.1f} s; peak memory: {memory}")
