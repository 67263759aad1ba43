"""Times DreamGaussian and refinement: `python -m scripts.benchmark dreamgaussian --device cuda`.

zero123 has full size and random weights, which does not change the speed. On CUDA, gsplat renders.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.acceleration.streams import wait_for_stream
from generation.lift.dreamgaussian import Dream, KnownView
from generation.lift.dreamgaussian.zero123 import Zero123
from generation.lift.refine import Refinement
from generation.lift.refine.pose import Lens, view_of
from generation.lift.refine.refinement import CAMERA_SHARE, SHAPE_SHARE, WORST_SILHOUETTE
from generation.packing import GaussianTensors
from generation.presets import preset
from generation.rendering.device_cloud import DeviceCloud
from generation.settings import GenerationSettings
from scripts.benchmarks import full_size, parts
from scripts.benchmarks.bench import CAPTURED, EAGER, Action, Bench, Parts, Way
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.random_zero123 import untrained_zero123
from scripts.benchmarks.rendering import sphere
from scripts.benchmarks.triposplat import cutout_picture

DTYPE = torch.float16
"""Of zero123 on CUDA; a CPU takes float32."""
VIEW_SIZES = (128, 256, 512)
SHARES = (0.3, 0.3, 0.4)
"""Of the steps at each of these sizes."""
COUNTS = (5_000, 20_000, 60_000)
"""Gaussians at the start of a dream."""
DREAM_S = 25.0
REFINED, REFINED_SIZE, REFINE_STEPS = 120_000, 518, 300
ABOVE = 15.0
"""Elevation of the picture that refinement follows, in degrees."""
SLICE_MS = 200.0
PHASES = ("camera", "shape", "colours")

Row = parts.Row


def run(
    *,
    device: str,
    only: Sequence[str] | None = None,
    out: Path | None = None,
    sizes: full_size.Sizes = full_size.FULL,
    settings: GenerationSettings | None = None,
) -> list[Row]:
    """Prints a line per part and case, and at the end what fits a request and a slice.

    Args:
        device: Where everything runs, in torch's words.
        only: Names in `PARTS`; all when None.
        out: JSON file for the rows, if any.
        sizes: Shapes of the networks.
        settings: Where a preset matters; gpu80 when None.

    Returns:
        See `parts.run`.

    Raises:
        SetupError: There is no such part or device, or a way has taken the device with it.
    """
    settings = settings or preset("gpu80")
    rows = parts.run(
        device=device,
        only=only,
        out=out,
        sizes=sizes,
        settings=settings,
        parts=PARTS,
        command="dreamgaussian",
    )
    for line in totals(rows):
        print(line, flush=True)
    mean = mean_ms(rows, COUNTS[0])
    if mean is not None:
        rows.append(whole_dream(torch.device(device), sizes, int(1000 * DREAM_S / mean)))
        print(rows[-1])
        write_figures(out, rows)
    return rows


def whole_dream(device: torch.device, sizes: full_size.Sizes, steps: int) -> Row:
    """Runs one dream with all that belongs to it, for `DREAM_S` at most.

    Returns:
        Row of the part `dream` with `steps` taken, out of how many (`planned`), in how many
        `seconds`, the number of `gaussians` in the end and whether their numbers are `finite`.
    """
    guidance = _guidance(sizes, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    known = KnownView(cutout_picture(REFINED_SIZE))
    dream = Dream(
        known,
        guidance,
        steps=max(steps, 1),
        sizes=VIEW_SIZES,
        count=COUNTS[0],
        seed=0,
        device=device,
    )
    while dream.done < dream.steps and time.perf_counter() - began < DREAM_S:
        dream.run(1)
        wait_for_stream(device)
    seconds = time.perf_counter() - began
    parameters = dream.gaussians.parameters
    row: Row = {
        "part": "dream",
        "way": "whole",
        "steps": dream.done,
        "planned": dream.steps,
        "seconds": round(seconds, 2),
        "gaussians": len(parameters["means"]),
        "finite": all(bool(x.isfinite().all()) for x in parameters.values()),
    }
    if device.type == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return row


def mean_ms(rows: Sequence[Row], count: int) -> float | None:
    """Milliseconds a step over a whole dream that begins with `count` Gaussians, if measured."""
    found = {r.get("case"): float(r["median_ms"]) for r in rows if "median_ms" in r}
    try:
        times = [found[step_case(size, count)] for size in VIEW_SIZES]
    except KeyError:
        return None
    return sum(share * ms for share, ms in zip(SHARES, times, strict=True))


def totals(rows: Sequence[Row]) -> list[str]:
    """Steps of a dream that fit `DREAM_S`, and steps of refinement that fit `SLICE_MS`."""
    found = {(r["part"], r.get("case")): float(r["median_ms"]) for r in rows if "median_ms" in r}
    lines = []
    for count in COUNTS:
        mean = mean_ms(rows, count)
        if mean is not None:
            slowest = max(found["dream", step_case(size, count)] for size in VIEW_SIZES)
            lines.append(
                f"dream, {count:,} Gaussians: {mean:.1f} ms a step in the mean, "
                f"{1000 * DREAM_S / mean:.0f} steps in {DREAM_S:.0f} s, "
                f"slices of {max(1, int(SLICE_MS / slowest))} stay within {SLICE_MS:.0f} ms"
            )
    phases = [found["refine", phase] for phase in PHASES if ("refine", phase) in found]
    if len(phases) == len(PHASES):
        slowest = max(phases)
        lines.append(
            f"refinement, {REFINED:,} Gaussians at {REFINED_SIZE}: "
            f"slices of {max(1, int(SLICE_MS / slowest))} stay within {SLICE_MS:.0f} ms"
        )
    peaks = [r["peak_gib"] for r in rows if "peak_gib" in r]
    if peaks:
        lines.append(f"tensors took at most {max(peaks):.1f} GiB")
    return lines


def step_case(size: int, count: int) -> str:
    """What the row of a dream's steps is called."""
    return f"{size} px, {count:,} Gaussians"


def _guidance(sizes: full_size.Sizes, device: torch.device, *, recorded: bool = True) -> Zero123:
    """As a preset for GPUs has it, unless it is not `recorded`."""
    dtype = DTYPE if device.type == "cuda" else torch.float32
    guidance = untrained_zero123(sizes.zero123, device=device, dtype=dtype)
    if recorded:
        guidance.record()
    return guidance


def _waiting(bench: Bench, action: Action) -> Action:
    def run() -> None:
        action()
        wait_for_stream(bench.device)

    return run


def _zero123(bench: Bench, way: Way) -> Mapping[str, Action]:
    """The guidance alone: one view, guided, so the UNet runs a batch of two."""
    guidance = _guidance(bench.sizes, bench.device, recorded="captured" in way)
    unet: Any = guidance._unet
    rgba = cutout_picture(REFINED_SIZE)
    latents = int(unet.config.sample_size)
    dtype, device = unet.dtype, bench.device
    inputs: dict[str, Any] = {
        "sample": bench.random(2, 8, latents, latents).to(dtype),
        "timestep": torch.full((2,), 500, device=device),
        "encoder_hidden_states": bench.random(2, 1, unet.config.cross_attention_dim).to(dtype),
    }

    def velocity(sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        predicted: Tensor = unet(sample, timestep, encoder_hidden_states).sample
        return predicted

    known = guidance.begin(rgba)
    angles = torch.tensor([0.5])
    generator = torch.Generator().manual_seed(0)

    def judge() -> None:
        with torch.enable_grad():
            side = guidance.size
            picture = torch.full((1, 4, side, side), 0.5, device=device, requires_grad=True)
            loss = guidance.loss(known, picture, angles, angles, 0.5, generator)
            torch.autograd.backward([loss])

    return {
        "UNet": bench.action(velocity, way, (), **inputs),
        "known view encoded": partial(guidance.begin, rgba),
        "loss and its gradient": judge,
    }


def _dream(bench: Bench, way: Way) -> Mapping[str, Action]:
    """A step at each size and number of Gaussians, before any are added."""
    guidance = _guidance(bench.sizes, bench.device)
    known = KnownView(cutout_picture(REFINED_SIZE))

    def stepping(size: int, count: int) -> Action:
        dream = Dream(
            known,
            guidance,
            steps=10_000,
            sizes=(size, size, size),
            count=count,
            seed=0,
            device=bench.device,
        )
        return _waiting(bench, partial(dream.run, 1))

    return {
        step_case(size, count): stepping(size, count) for count in COUNTS for size in VIEW_SIZES
    }


def solid(count: int, device: torch.device) -> GaussianTensors:
    """A finished cloud: an ellipsoid, whose outline says from how far above it is seen."""
    cloud = sphere(count)
    arrays = (
        cloud.positions * np.array([1.0, 0.6, 0.7], dtype=np.float32),
        cloud.log_scales,
        cloud.rotations,
        cloud.opacity_logits,
        cloud.colors_dc / 2,
    )
    return GaussianTensors(*(torch.from_numpy(array).to(device) for array in arrays))


def picture_of(cloud: GaussianTensors, size: int) -> NDArray[np.uint8]:
    """A cut-out (size, size, 4) of a finished cloud, seen from `ABOVE`."""
    device = cloud.positions.device
    pose = torch.tensor([np.radians(ABOVE), np.log(3.2), 0.02, -0.05], device=device).float()
    with torch.no_grad():
        seen = Lens.of(size).draw(DeviceCloud.of(cloud.to_cloud(), device), view_of(pose))
    rgba = torch.cat([seen[..., :3] / seen[..., 3:].clamp_min(1e-6), seen[..., 3:]], dim=-1)
    pixels: NDArray[np.uint8] = (rgba.clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels


def _refine(bench: Bench, way: Way) -> Mapping[str, Action]:
    """Preparation, a step of each phase, and the result."""
    truth = solid(REFINED, bench.device)
    picture = picture_of(truth, REFINED_SIZE)
    start = solid(REFINED, bench.device)

    def begin() -> Refinement:
        return Refinement(start, picture, steps=REFINE_STEPS, size=REFINED_SIZE, elevation=ABOVE)

    def stepping(first: int) -> tuple[Refinement, Action]:
        refinement = begin()
        refinement.run(first)
        return refinement, _waiting(bench, partial(refinement.run, 1))

    camera = math.ceil(CAMERA_SHARE * REFINE_STEPS)
    shape = camera + math.ceil(SHAPE_SHARE * REFINE_STEPS)
    # The first step of the shape and the first two of the colours prepare these phases.
    made = [stepping(first) for first in (0, camera + 1, shape + 2)]
    finished = made[-1][0]
    if finished.silhouette >= WORST_SILHOUETTE:
        raise ArithmeticError("the camera was not found")
    timed: dict[str, Action] = {"begin": _waiting(bench, begin)}
    timed |= {phase: action for phase, (_, action) in zip(PHASES, made, strict=True)}
    timed["result"] = lambda: finished.result().to_splats()
    return timed


PARTS: Parts = {
    "zero123": (_zero123, (EAGER, CAPTURED)),
    "dream": (_dream, (EAGER,)),
    "refine": (_refine, (EAGER,)),
}
"""Parts by name."""
