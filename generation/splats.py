"""A TripoSR scene as flat Gaussians lying on its surface, in the subnet's frame."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.errors import GenerationError
from generation.presets import SplatSettings
from generation.surface import sample_surface
from generation.triposr import TripoSR
from protocol.gaussians import SH_C0, GaussianCloud

LARGEST_SIDE = 1.6
"""Largest side of a finished cloud. A validator rescales to 1.5 and divides opacity by the factor,
so anything of 1.5 or more keeps its opacity; the rest is a margin for its way of measuring."""

_MIN_GAUSSIANS = 7_000


@torch.inference_mode()
def extract_cloud(model: TripoSR, scene_code: Tensor, settings: SplatSettings) -> GaussianCloud:
    """Covers the scene's surface with evenly spread flat discs.

    TripoSR's world has z up and shows the input image from +x with +y to the right. The subnet has
    y up and looks from +z with +x to the right: (x, y, z) becomes (y, z, x). The cloud is centred
    per axis on its bounding box and its largest side is `LARGEST_SIDE`.

    Args:
        model: The network whose decoder reads `scene_code`.
        scene_code: (3, C, H, W) triplane on the model's device.
        settings: Number of Gaussians, threshold, lattice and disc shape.

    Returns:
        At most `settings.max_gaussians` Gaussians, identical for identical input on one device.

    Raises:
        GenerationError: The density field is not finite, has no surface, or has one so small that
            fewer Gaussians than a validator accepts fit on it.
    """
    surface = sample_surface(
        model,
        scene_code,
        count=settings.max_gaussians,
        threshold=settings.threshold,
        resolution=settings.resolution,
        min_component=settings.min_component,
        seed=settings.seed,
    )
    count = len(surface.points)
    if count < _MIN_GAUSSIANS <= settings.max_gaussians:
        raise GenerationError(
            f"the surface found is too small: {count} Gaussians fit on it, a validator wants "
            f"{_MIN_GAUSSIANS}; raise splats.resolution (now {settings.resolution})"
        )
    _, rgb = model.query(surface.points, scene_code)
    to_subnet = torch.tensor([1, 2, 0], device=surface.points.device)
    positions, scale = _fit_to_box(_to_numpy(surface.points[:, to_subnet]))

    in_plane = math.log(settings.disc_sigma * surface.spacing * scale)
    log_scales = np.full((count, 3), in_plane, dtype=np.float32)
    log_scales[:, 2] += math.log(settings.thickness)
    return GaussianCloud(
        positions=positions,
        log_scales=log_scales,
        rotations=disc_rotations(_to_numpy(surface.normals[:, to_subnet])),
        opacity_logits=np.full(count, settings.opacity_logit, dtype=np.float32),
        colors_dc=(_to_numpy(rgb) - np.float32(0.5)) / np.float32(SH_C0),
    )


def disc_rotations(normals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quaternions that turn a disc's thin axis, local z, to the given normals.

    A disc has no back, so normals are first flipped to z >= 0. That keeps w at or above
    sqrt(1/2), where SPZ, which stores only x y z and rebuilds w, is precise: the worst error of a
    normal after a round trip is about 1 degree instead of 11.

    Args:
        normals: (N, 3) float32 unit vectors.

    Returns:
        (N, 4) float32 unit quaternions w x y z, the shortest rotation from +z.
    """
    x, y, z = np.where(normals[:, 2:] < 0, -normals, normals).T
    quaternions = np.stack((1 + z, -y, x, np.zeros_like(z)), axis=-1)
    return quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True)


def _fit_to_box(points: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    low, high = points.min(axis=0), points.max(axis=0)
    scale = LARGEST_SIDE / max(float((high - low).max()), 1e-6)
    return (points - (low + high) / 2) * np.float32(scale), scale


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
