"""How well a splat cloud shows the field that it was made from, and how long making it takes.

The truth is TripoSR's own volume render of the same scene code through the same cameras.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

from generation.presets import SplatSettings
from generation.rendering.cameras import (
    DISTANCE,
    ELEVATION,
    FOV,
    VALIDATOR_VIEWS,
    azimuth,
    orbit_camera,
)
from generation.rendering.views import render_layers
from generation.splats import LARGEST_SIDE, TO_SUBNET, extract_cloud
from generation.triposr import Camera, TripoSR, TripoSRConfig, ViTConfig, untrained
from protocol import spz
from protocol.gaussians import SH_C0, GaussianCloud
from scripts.benchmarks.scenes import SPHERE_RADIUS, box, linear_layers, sphere
from scripts.benchmarks.timing import median_ms

COUNTS = (8_000, 25_000, 100_000, 250_000)
_WORLD_SIDE = 2 * SPHERE_RADIUS  # largest side of both scenes, in TripoSR's world
_COVERED, _SOLID = 0.95, 0.99

Encoder = Callable[[TripoSR, Tensor, int], GaussianCloud]


def flat_discs(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """What the pipeline makes, at the size that the scene has in the truth's pictures.

    The pipeline brings the box of the centres, which lie below the surface, to the side that the
    surface itself has here.
    """
    settings = SplatSettings(max_gaussians=count)
    cloud = extract_cloud(model, scene_code, settings)
    shrink = np.float32(1 - 2 * settings.inset / LARGEST_SIDE)
    return replace(
        cloud, positions=cloud.positions * shrink, log_scales=cloud.log_scales + np.log(shrink)
    )


def isotropic_on_surface(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """Round Gaussians with identity rotations on our sample of the surface."""
    settings = SplatSettings(max_gaussians=count, inset=0.0)
    cloud = extract_cloud(model, scene_code, settings)
    rotations = np.zeros_like(cloud.rotations)
    rotations[:, 0] = 1.0
    return replace(cloud, log_scales=cloud.log_scales[:, :1].repeat(3, axis=1), rotations=rotations)


def isotropic_on_vertices(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """Round Gaussians on vertices of the marching-cubes mesh, as a first attempt would do it."""
    mesh = model.extract_mesh(scene_code, resolution=256)
    rng = np.random.default_rng(0)
    vertices = np.asarray(mesh.vertices, dtype=np.float32)
    kept = rng.permutation(len(vertices))[:count]
    colours = np.asarray(mesh.visual.vertex_colors[kept, :3], dtype=np.float32) / 255
    scale = LARGEST_SIDE / _WORLD_SIDE
    spacing = math.sqrt(float(mesh.area) / len(kept)) * scale
    rotations = rng.normal(size=(len(kept), 4)).astype(np.float32)
    return GaussianCloud(
        np.asarray(vertices[kept][:, TO_SUBNET] * scale, dtype=np.float32),
        np.full((len(kept), 3), math.log(0.85 * spacing), dtype=np.float32),
        rotations / np.linalg.norm(rotations, axis=-1, keepdims=True),
        np.full(len(kept), 5.5, dtype=np.float32),
        np.asarray((colours - 0.5) / SH_C0, dtype=np.float32),
    )


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
        white = model.render(scene_code, camera)
        black_and_white.append(torch.cat([white, _opacity(model, scene_code, camera)], dim=-1))
    return torch.stack(black_and_white).cpu().numpy()


def _opacity(model: TripoSR, scene_code: Tensor, camera: Camera) -> Tensor:
    # Over white, a black field shows 1 - opacity.
    last = linear_layers(model)[-1]
    weight, bias = last.weight.clone(), last.bias.clone()
    last.weight[1:], last.bias[1:] = 0.0, -30.0
    picture = model.render(scene_code, camera)
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


def stage_seconds(*, device: str, counts: Sequence[int] = COUNTS) -> list[dict[str, Any]]:
    """Median milliseconds of the splat stage and of the SPZ encoder, per number of Gaussians.

    The network is full size with random weights in bfloat16 on CUDA, a small one on a CPU.
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
    code = model.scene_codes(np.full((config.image_size, config.image_size, 3), 0.5))
    rows = []
    for count in counts:
        settings = SplatSettings(max_gaussians=count)
        cloud = extract_cloud(model, code, settings)
        data = spz.encode(cloud)
        rows.append(
            {
                "gaussians": len(cloud),
                "splats_ms": median_ms(partial(extract_cloud, model, code, settings)),
                "encode_ms": median_ms(partial(spz.encode, cloud)),
                "spz_bytes": len(data),
            }
        )
    return rows


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
        "stage": stage_seconds(device=device),
        "quality": quality(device=device, size=size, views=range(views)),
    }
    print(f"{figures['device']}: extract_cloud and spz.encode, median ms")
    for row in figures["stage"]:
        print(
            "{gaussians:>8} {splats_ms:>8.1f} {encode_ms:>8.1f} {spz_bytes:>10} bytes".format(**row)
        )
    print(f"{views} views of {size} x {size} against the volume render")
    for row in figures["quality"]:
        scores = "{psnr_db:>7.2f} dB  SSIM {ssim:.4f}  holes {holes:.4%}".format(**row)
        print("{scene:<7}{encoder:<24}{gaussians:>8}".format(**row), scores)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures
