"""How well a splat cloud shows the field that it was made from, and how long making it takes.

The truth is TripoSR's own volume render of the same scene code through the same cameras.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

from generation.presets import SplatSettings
from generation.rendering.cameras import VALIDATOR_VIEWS, orbit_camera
from generation.rendering.views import render_layers
from generation.splats import LARGEST_SIDE, extract_cloud
from generation.triposr import Camera, TripoSR
from protocol.gaussians import SH_C0, GaussianCloud
from scripts.benchmarks.scenes import SPHERE_RADIUS, box, sphere

COUNTS = (8_000, 25_000, 100_000, 250_000)
_ELEVATION, _DISTANCE, _FOV = 15.0, 2.5, 49.1
_WORLD_SIDE = 2 * SPHERE_RADIUS  # largest side of both scenes, in TripoSR's world
_COVERED, _SOLID = 0.95, 0.99

Encoder = Callable[[TripoSR, Tensor, int], GaussianCloud]


def flat_discs(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """What the pipeline makes."""
    return extract_cloud(model, scene_code, SplatSettings(max_gaussians=count))


def isotropic_on_surface(model: TripoSR, scene_code: Tensor, count: int) -> GaussianCloud:
    """The same points as round Gaussians with identity rotations, one spacing apart."""
    cloud = flat_discs(model, scene_code, count)
    rotations = np.zeros_like(cloud.rotations)
    rotations[:, 0] = 1.0
    return GaussianCloud(
        cloud.positions,
        cloud.log_scales[:, :1].repeat(3, axis=1),
        rotations,
        cloud.opacity_logits,
        cloud.colors_dc,
    )


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
        vertices[kept][:, [1, 2, 0]] * np.float32(scale),
        np.full((len(kept), 3), math.log(0.85 * spacing), dtype=np.float32),
        rotations / np.linalg.norm(rotations, axis=-1, keepdims=True),
        np.full(len(kept), 5.5, dtype=np.float32),
        (colours - np.float32(0.5)) / np.float32(SH_C0),
    )


ENCODERS: dict[str, Encoder] = {
    "flat discs (ours)": flat_discs,
    "isotropic, identity": isotropic_on_surface,
    "isotropic on vertices": isotropic_on_vertices,
}


def compare(
    cloud: GaussianCloud, truth: NDArray[np.float32], views: range | list[int], size: int
) -> dict[str, float]:
    """Mean PSNR and SSIM over views, and holes, of a cloud against volume renders on white.

    Args:
        cloud: In the subnet's frame, largest side `LARGEST_SIDE`.
        truth: (V, H, W, 4) RGB over white and opacity, float32 in 0..1.
        views: Indices of the validator's views.
        size: Picture side in pixels.
    """
    distance = _DISTANCE * LARGEST_SIDE / 1.5
    cameras = [
        orbit_camera(_azimuth(v), _ELEVATION, radius=distance, fov=_FOV, size=size) for v in views
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
    model: TripoSR, scene_code: Tensor, views: range | list[int], size: int
) -> NDArray[np.float32]:
    """(V, H, W, 4): the field over white, and its opacity, from the validator's cameras."""
    black_and_white = []
    for view in tqdm(views, desc="volume renders", leave=False):
        camera = Camera(
            elevation=_ELEVATION,
            azimuth=_azimuth(view),
            distance=_DISTANCE * _WORLD_SIDE / 1.5,
            fov=_FOV,
            height=size,
            width=size,
        )
        white = model.render(scene_code, camera)
        black_and_white.append(torch.cat([white, _opacity(model, scene_code, camera)], dim=-1))
    return torch.stack(black_and_white).cpu().numpy()


def _opacity(model: TripoSR, scene_code: Tensor, camera: Camera) -> Tensor:
    # Over white, a field without colour shows 1 - opacity.
    black = model.decoder.layers[-1]
    bias = black.bias.clone()
    weight = black.weight.clone()
    black.bias[1:], black.weight[1:] = -30.0, 0.0
    picture = model.render(scene_code, camera)
    black.bias.copy_(bias)
    black.weight.copy_(weight)
    return 1 - picture[..., :1]


def _azimuth(view: int) -> float:
    return 360.0 * view / (VALIDATOR_VIEWS - 1)


def quality(
    *,
    device: str,
    size: int = 518,
    counts: tuple[int, ...] = COUNTS,
    views: range | list[int] = range(VALIDATOR_VIEWS),
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
