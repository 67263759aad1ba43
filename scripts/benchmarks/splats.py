"""How well a splat cloud shows the field that it was made from, and how long making it takes.

The truth is TripoSR's own volume render of the same scene code through the same cameras.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

from generation import packing
from generation.lift.triposr import TripoSR, TripoSRConfig, ViTConfig, splats, surface
from generation.lift.triposr.fused import fused_decoder
from generation.lift.triposr.splats import GaussianExtractor, extract_cloud
from generation.packing import LARGEST_SIDE
from generation.presets import PRESETS
from generation.rendering.cameras import (
    DISTANCE,
    ELEVATION,
    FOV,
    VALIDATOR_VIEWS,
    azimuth,
    orbit_camera,
)
from generation.rendering.views import render_layers
from generation.scoring.validity import report_on
from generation.settings import SplatSettings
from protocol import spz
from protocol.gaussians import GaussianCloud
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.plain import round_gaussians
from scripts.benchmarks.random_triposr import untrained
from scripts.benchmarks.scenes import SPHERE_RADIUS, box, linear_layers, sphere
from scripts.benchmarks.timing import REPEATS, WARM_UP, median_ms, wait
from scripts.benchmarks.volume_render import Camera, render

COUNTS = (8_000, 25_000, 100_000, 250_000)
_WORLD_SIDE = 2 * SPHERE_RADIUS  # what the truth's cameras see at `LARGEST_SIDE`
_COVERED, _SOLID = 0.95, 0.99

_PARTS = {
    "coarse lattice and cells": (splats, "read_lattice"),
    "floaters": (splats, "settle"),
    "fine lattice and its crossed edges": (surface, "_crossed_edges"),
    "even selection": (surface, "_pick_evenly"),
    "crossings solved": (surface, "_solve_crossings"),
    "normals": (surface, "density_normals"),
    "colours and discs over edges": (splats, "_colour_and_fit"),
    "quantised and measured": (splats, "quantise"),
    "transfer": (packing, "all_to_host"),
}

_CALLS = {
    "launches": ("cudaLaunchKernel", "cuLaunchKernel"),
    "copies": ("cudaMemcpy", "cuMemcpy"),
    "fills": ("cudaMemset", "cuMemset"),
    "waits": ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize"),
}

Encoder = Callable[[TripoSR, Tensor, int], GaussianCloud]


def flat_discs(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """What the pipeline makes, at the size that the scene has in the truth's pictures."""
    return _as_in_truth(model, scene_code, SplatSettings(max_gaussians=count))


def isotropic_on_surface(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """Round Gaussians with identity rotations on our sample of the surface."""
    settings = SplatSettings(max_gaussians=count, inset=0.0)
    cloud = _as_in_truth(model, scene_code, settings)
    rotations = np.zeros_like(cloud.rotations)
    rotations[:, 0] = 1.0
    return replace(cloud, log_scales=cloud.log_scales[:, :1].repeat(3, axis=1), rotations=rotations)


def _as_in_truth(model: TripoSR, scene_code: Tensor, settings: SplatSettings) -> GaussianCloud:
    """Undoes the pipeline's scaling, which brings the box of the centres to `LARGEST_SIDE`.

    In the truth's pictures the surface has the side that the field gives it, and the centres lie
    below the surface. A pixel of difference in size costs a box 4 dB.
    """
    cloud = extract_cloud(model, scene_code, settings)
    line = torch.linspace(0, model.radius, 1 << 16, device=scene_code.device)
    density = model.query_density(line[:, None] * line.new_tensor([1, 0, 0]), scene_code)
    side = 2 * float(line[density > settings.threshold].max())  # both scenes are largest along x
    size = np.float32((1 - 2 * settings.inset / LARGEST_SIDE) * side / _WORLD_SIDE)
    return replace(
        cloud, positions=cloud.positions * size, log_scales=cloud.log_scales + np.log(size)
    )


def isotropic_on_vertices(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """Round Gaussians on vertices of the marching-cubes mesh, as a first attempt would do it."""
    mesh = model.extract_mesh(scene_code, resolution=256)
    return round_gaussians(mesh, count, LARGEST_SIDE / _WORLD_SIDE)


ENCODERS: dict[str, Encoder] = {
    "flat discs (ours)": flat_discs,
    "isotropic, identity": isotropic_on_surface,
    "isotropic on vertices": isotropic_on_vertices,
}


def compare(
    cloud: GaussianCloud, truth: NDArray[np.float32], views: Sequence[int], size: int
) -> dict[str, float]:
    """Mean PSNR and SSIM over views, and holes, of a cloud against volume renders on white.

    Args:
        cloud: In the subnet's frame, largest side `LARGEST_SIDE`.
        truth: (V, H, W, 4) RGB over white and opacity, float32 in 0..1.
        views: Indices of the validator's views.
        size: Picture side in pixels.
    """
    distance = DISTANCE * LARGEST_SIDE / 1.5
    cameras = [
        orbit_camera(azimuth(v), ELEVATION, radius=distance, fov=FOV, size=size) for v in views
    ]
    rgb, coverage = render_layers(cloud, cameras)
    pictures = np.clip(rgb + (1 - coverage[..., None]), 0, 1)
    errors = ((pictures - truth[..., :3]) ** 2).reshape(len(pictures), -1).mean(axis=1)
    inside = truth[..., 3] > _SOLID
    return {
        "psnr_db": float((-10 * np.log10(errors)).mean()),
        "ssim": float(
            np.mean(
                [
                    structural_similarity(a, b, channel_axis=-1, data_range=1.0)
                    for a, b in zip(pictures, truth[..., :3], strict=True)
                ]
            )
        ),
        "holes": float((coverage[inside] < _COVERED).mean()),
    }


def volume_renders(
    model: TripoSR, scene_code: Tensor, views: Sequence[int], size: int
) -> NDArray[np.float32]:
    """(V, H, W, 4): the field over white, and its opacity, from the validator's cameras."""
    black_and_white = []
    for view in tqdm(views, desc="volume renders", leave=False):
        camera = Camera(
            elevation=ELEVATION,
            azimuth=azimuth(view),
            distance=DISTANCE * _WORLD_SIDE / 1.5,
            fov=FOV,
            height=size,
            width=size,
        )
        white = render(model, scene_code, camera)
        black_and_white.append(torch.cat([white, _opacity(model, scene_code, camera)], dim=-1))
    return torch.stack(black_and_white).cpu().numpy()


def _opacity(model: TripoSR, scene_code: Tensor, camera: Camera) -> Tensor:
    # Over white, a black field shows 1 - opacity.
    last = linear_layers(model)[-1]
    weight, bias = last.weight.clone(), last.bias.clone()
    last.weight[1:], last.bias[1:] = 0.0, -30.0
    picture = render(model, scene_code, camera)
    last.weight.copy_(weight)
    last.bias.copy_(bias)
    return 1 - picture[..., :1]


def quality(
    *,
    device: str,
    size: int = 518,
    counts: Sequence[int] = COUNTS,
    views: Sequence[int] = range(VALIDATOR_VIEWS),
) -> list[dict[str, Any]]:
    """One row per scene, encoder and count: PSNR, SSIM, holes and Gaussians made."""
    rows = []
    for name, make in (("sphere", sphere), ("box", box)):
        model, code = make()
        model, code = model.to(device), code.to(device)
        truth = volume_renders(model, code, views, size)
        for encoder, encode in ENCODERS.items():
            for count in counts:
                cloud = encode(model, code, count)
                scores = compare(cloud, truth, views, size)
                rows.append({"scene": name, "encoder": encoder, "gaussians": len(cloud)} | scores)
    return rows


def stage_times(*, device: str, counts: Sequence[int] = COUNTS) -> list[dict[str, Any]]:
    """Median milliseconds of the stages `splats` and `encode`, per number of Gaussians.

    The network has random weights: full size, in bfloat16, with the chunks of the preset gpu80 and
    on CUDA with its layers, with the fused decoder, and with that and CUDA graphs; a small one on a
    CPU.
    """
    on_gpu = device.startswith("cuda")
    config = (
        TripoSRConfig()
        if on_gpu
        else TripoSRConfig(num_layers=1, vit=ViTConfig(num_hidden_layers=1))
    )
    model = untrained(config, device=device)
    if on_gpu:
        model.bfloat16()
        model.query_chunk = PRESETS["gpu80"].triposr.chunk_size
    code = model.scene_codes(np.full((config.image_size, config.image_size, 3), 0.5))
    rows = []
    for way in ("layers", "fused", "recorded") if on_gpu else ("layers",):
        model.fused = None if way == "layers" else fused_decoder(model.decoder)
        for count in counts:
            settings = SplatSettings(max_gaussians=count)
            extractor = GaussianExtractor(model, settings, record=way == "recorded")
            make = partial(extractor.splats, code)
            made = make()
            file = spz.compress(made.payload)
            splats_ms = median_ms(make)
            compress_ms = median_ms(partial(spz.compress, made.payload))
            check_ms = median_ms(partial(report_on, made.measures, wire_bytes=len(file)))
            rows.append(
                {
                    "way": way,
                    "gaussians": len(made.cloud),
                    "splats_ms": splats_ms,
                    "encode_ms": compress_ms + check_ms,
                    "both_ms": splats_ms + compress_ms + check_ms,
                    "spz_bytes": len(file),
                    "encode_on_cpu_ms": median_ms(partial(spz.encode, made.cloud)),
                    "calls": calls(make) if on_gpu else {},
                    "parts_ms": {} if way == "recorded" else part_times(make, device=device),
                }
            )
    return rows


def calls(action: Callable[[], object]) -> dict[str, float]:
    """What one call of an action asks of CUDA, and for how long the device works at it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        action()
        torch.cuda.synchronize()
    counted: dict[str, float] = dict.fromkeys(_CALLS, 0)
    for event in found.key_averages():
        for kind, names in _CALLS.items():
            if event.key.startswith(names):
                counted[kind] += event.count
    counted["waits"] -= 1  # the one above
    on_device = [
        event.self_device_time_total
        for event in found.key_averages()
        if event.device_type.name == "CUDA"
    ]
    counted["device_ms"] = sum(on_device) / 1e3
    return counted


def part_times(extract: Callable[[], object], *, device: str) -> dict[str, float]:
    """Median milliseconds of the parts of the stage `splats`, in order.

    The device is waited for around each part, so that together they take longer than the whole.
    """
    times: dict[str, list[float]] = {part: [] for part in _PARTS}

    def timed(part: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            wait(device)
            start = time.perf_counter()
            result = function(*args, **options)
            wait(device)
            times[part].append(1000 * (time.perf_counter() - start))
            return result

        return call

    with ExitStack() as patches:
        for part, (module, name) in _PARTS.items():
            patches.enter_context(patch.object(module, name, timed(part, getattr(module, name))))
        for _ in range(WARM_UP + REPEATS):
            extract()
    return {part: statistics.median(values[WARM_UP:]) for part, values in times.items()}


def run(
    *, device: str, size: int = 518, views: int = VALIDATOR_VIEWS, out: Path | None = None
) -> dict[str, Any]:
    """Prints and returns the likeness of clouds to their fields, and the stage's times.

    Args:
        device: Where fields are evaluated and clouds made.
        size: Side of the compared pictures, in pixels.
        views: How many of the validator's views are compared.
        out: JSON file for the same figures.
    """
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "size": size,
        "views": views,
        "stage": stage_times(device=device),
        "quality": quality(device=device, size=size, views=range(views)),
    }
    print(f"{figures['device']}: splats, encode and check, both together, median ms")
    for row in figures["stage"]:
        times = "{splats_ms:>8.1f} {encode_ms:>8.1f} {both_ms:>8.1f}".format(**row)
        print("{gaussians:>8} {times} {spz_bytes:>10} bytes, {way}".format(times=times, **row))
        print("{encode_on_cpu_ms:>17.1f} spz.encode of the cloud".format(**row))
        for name, number in row["calls"].items():
            print(f"{number:>17.1f} {name}")
        for part, milliseconds in row["parts_ms"].items():
            print(f"{milliseconds:>17.1f} {part}")
    print(f"{views} views of {size} x {size} against the volume render")
    for row in figures["quality"]:
        scores = "{psnr_db:>7.2f} dB  SSIM {ssim:.4f}  holes {holes:.4%}".format(**row)
        print("{scene:<7}{encoder:<24}{gaussians:>8}".format(**row), scores)
    write_figures(out, figures)
    return figures
