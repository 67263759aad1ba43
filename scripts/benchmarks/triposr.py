"""Times image to surface at full size: `python -m scripts.benchmark triposr --device cuda`.

The weights are random, which does not change the speed; the field is one closed object.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation.lift.triposr import DENSITY_THRESHOLD, TripoSR, TripoSRConfig
from generation.lift.triposr.mesh import marching_cubes, surface_points
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.random_triposr import untrained
from scripts.benchmarks.timing import median_ms, wait

PLAIN_CHUNK = 8192
CHUNKS = (65_536, 131_072, 262_144, 1_048_576)

Timer = Callable[[Callable[[], object]], float]
Row = dict[str, float]


@torch.no_grad()
def run(
    *,
    device: str,
    out: Path | None = None,
    config: TripoSRConfig | None = None,
    resolution: int = 256,
    backend: str = "inductor",
) -> dict[str, Any]:
    """Prints a table of medians for the plain recipe and the fast ones, all from one process.

    Plain is a float32 eager forward pass, density at every grid point in chunks of 8,192, and
    marching cubes on the CPU. Fast is the forward pass as named, `density_grid`, and the vertices
    of the same marching cubes found on the device.

    Args:
        device: Where to run, in torch's words.
        out: File to write the same figures to as JSON, if any.
        config: Shape of the network; the public model's when None.
        resolution: Density samples along each axis.
        backend: What `torch.compile` compiles with.

    Returns:
        `device`, `torch` and `resolution`; `recipes`, name to milliseconds for `forward`,
        `density`, `surface` and `total`, and `speedup` over plain; `density_grid_ms`, dtype to
        chunk to milliseconds; `compile_s`, the first compiled call.
    """
    timer = partial(median_ms, device=device)
    model = untrained(config or TripoSRConfig(), device=device)
    default_chunk = model.query_chunk
    size = model.config.image_size
    images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)

    recipes = {"plain": _plain(model, images, resolution, timer)}
    code = model(images)[0]
    sweep = {"float32": _sweep(model, code, resolution, timer)}
    model.bfloat16()
    code = model(images)[0]
    sweep["bfloat16"] = _sweep(model, code, resolution, timer)
    grid = model.density_grid(code, resolution)
    surface = timer(lambda: surface_points(grid, DENSITY_THRESHOLD, model.radius))
    forward = {"bfloat16 eager": timer(lambda: model(images))}
    compile_s = _compile(model, images, backend, device)
    forward["bfloat16 compiled"] = timer(lambda: model(images))
    for name, forward_ms in forward.items():
        for dtype, by_chunk in sweep.items():
            density = by_chunk[str(default_chunk)]
            recipes[f"{name}, {dtype} grid"] = _row(forward_ms, density, surface)

    figures = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "torch": torch.__version__,
        "resolution": resolution,
        "recipes": {
            name: row | {"speedup": recipes["plain"]["total"] / row["total"]}
            for name, row in recipes.items()
        },
        "density_grid_ms": sweep,
        "compile_s": compile_s,
    }
    _print(figures)
    write_figures(out, figures)
    return figures


def _plain(model: TripoSR, images: Tensor, resolution: int, timer: Timer) -> Row:
    code = model(images)[0]
    line = torch.linspace(-model.radius, model.radius, resolution, device=images.device)
    points = torch.cartesian_prod(line, line, line)
    chunk, model.query_chunk = model.query_chunk, PLAIN_CHUNK
    density = model.query_density(points, code).view((resolution,) * 3)
    row = _row(
        timer(lambda: model(images)),
        timer(lambda: model.query_density(points, code)),
        timer(lambda: marching_cubes(density, DENSITY_THRESHOLD, model.radius)),
    )
    model.query_chunk = chunk
    return row


def _sweep(model: TripoSR, code: Tensor, resolution: int, timer: Timer) -> Row:
    chunk = model.query_chunk
    times = {}
    for model.query_chunk in CHUNKS:
        times[str(model.query_chunk)] = timer(lambda: model.density_grid(code, resolution))
    model.query_chunk = chunk
    return times


def _compile(model: TripoSR, images: Tensor, backend: str, device: str) -> float:
    model.compile(fullgraph=True, backend=backend)
    start = time.perf_counter()
    model(images)
    wait(device)
    return time.perf_counter() - start


def _row(forward: float, density: float, surface: float) -> Row:
    total = forward + density + surface
    return {"forward": forward, "density": density, "surface": surface, "total": total}


def _print(figures: dict[str, Any]) -> None:
    print(f"{figures['device']}, torch {figures['torch']}, {figures['resolution']}^3, median ms")
    columns = ("forward", "density", "surface", "total", "speedup")
    print(f"{'recipe':<34}" + "".join(f"{column:>10}" for column in columns))
    for name, row in figures["recipes"].items():
        print(f"{name:<34}" + "".join(f"{row[column]:>10.1f}" for column in columns))
    for dtype, by_chunk in figures["density_grid_ms"].items():
        times = ", ".join(f"{chunk}: {time_ms:.1f}" for chunk, time_ms in by_chunk.items())
        print(f"density_grid {dtype} by chunk: {times}")
    print(f"first compiled call: {figures['compile_s']:.1f} s")
