"""A TripoSR scene as flat Gaussians lying on its surface, in the subnet's frame."""

import math

import numpy as np
import torch
from torch import Tensor

from generation.errors import GenerationError
from generation.presets import SplatSettings
from generation.surface import Surface, sample_surface
from generation.triposr import TripoSR
from generation.validity import MIN_GAUSSIANS
from protocol.gaussians import SH_C0, GaussianCloud

LARGEST_SIDE = 1.6
"""Largest side of a finished cloud. A validator rescales to 1.5 and divides opacity by the factor,
so anything of 1.5 or more keeps its opacity; the rest is a margin for its way of measuring."""

TO_SUBNET = (1, 2, 0)
"""TripoSR's world has z up and shows the input image from +x with +y to the right; the subnet has
y up and looks from +z with +x to the right. So (x, y, z) becomes (y, z, x)."""

# A disc near an edge of the object sticks out beyond it. Whether it does is asked _REACH standard
# deviations from its centre and _BELOW of that under its plane; if so, it is narrowed and moved in.
_REACH, _BELOW = 2.0, 0.3
_NARROWED, _MOVED_IN = 0.5, 0.7


@torch.inference_mode()
def extract_cloud(model: TripoSR, scene_code: Tensor, settings: SplatSettings) -> GaussianCloud:
    """Covers the scene's surface with evenly spread flat discs.

    The cloud is in the subnet's frame, centred per axis on the box of its centres, whose largest
    side is `LARGEST_SIDE`.

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
    if count < MIN_GAUSSIANS <= settings.max_gaussians:
        raise GenerationError(
            f"the surface found is too small: {count} Gaussians fit on it, a validator wants "
            f"{MIN_GAUSSIANS}; raise splats.resolution (now {settings.resolution})"
        )
    _, rgb = model.query(surface.points, scene_code)
    rotations = disc_rotations(surface.normals[:, TO_SUBNET])
    sigma = settings.disc_sigma * surface.spacing
    shift, narrowing = _keep_inside_edges(model, scene_code, surface, rotations, sigma, settings)

    low, high = torch.aminmax(surface.points, dim=0)
    scale = LARGEST_SIDE / float((high - low).max().clamp_min(1e-6))
    positions = surface.points + shift - settings.inset / scale * surface.normals
    low, high = torch.aminmax(positions, dim=0)
    scale = LARGEST_SIDE / float((high - low).max().clamp_min(1e-6))
    positions = ((positions - (low + high) / 2) * scale)[:, TO_SUBNET]

    thin = torch.full_like(narrowing[:, :1], settings.thickness)
    log_scales = torch.cat([narrowing, thin], dim=-1).log() + math.log(sigma * scale)
    return GaussianCloud(
        positions=positions.cpu().numpy(),
        log_scales=log_scales.cpu().numpy(),
        rotations=rotations.cpu().numpy(),
        opacity_logits=np.full(count, settings.opacity_logit, dtype=np.float32),
        colors_dc=((rgb - 0.5) / SH_C0).cpu().numpy(),
    )


def disc_rotations(normals: Tensor) -> Tensor:
    """Quaternions that turn a disc's thin axis, local z, to the given normals.

    A disc has no back, so normals are first flipped to z >= 0. That keeps w at or above
    sqrt(1/2), where SPZ, which stores only x y z and rebuilds w, is precise: the worst error of a
    normal after a round trip is about 1 degree instead of 11.

    Args:
        normals: (N, 3) float32 unit vectors.

    Returns:
        (N, 4) float32 unit quaternions w x y z, the shortest rotation from +z.
    """
    x, y, z = torch.where(normals[:, 2:] < 0, -normals, normals).unbind(dim=-1)
    quaternions = torch.stack((1 + z, -y, x, torch.zeros_like(z)), dim=-1)
    return torch.nn.functional.normalize(quaternions, dim=-1)


def _keep_inside_edges(
    model: TripoSR,
    scene_code: Tensor,
    surface: Surface,
    rotations: Tensor,
    sigma: float,
    settings: SplatSettings,
) -> tuple[Tensor, Tensor]:
    """Finds the discs that stick out beyond an edge.

    Returns:
        How to move the centres (N, 3), in the model's world, and by how much to multiply the two
        in-plane scales (N, 2).
    """
    shift = torch.zeros_like(surface.points)
    narrowing = torch.ones_like(surface.points[:, :2])
    reach = _REACH * sigma
    for axis, tangent in enumerate(_in_plane_axes(rotations)):
        tangent = tangent[:, torch.tensor(TO_SUBNET).argsort()]
        ends = torch.cat([surface.points + side * reach * tangent for side in (1, -1)])
        ends -= _BELOW * reach * surface.normals.repeat(2, 1)
        outside = model.query_density(ends, scene_code) < settings.threshold
        ahead, behind = outside.float().chunk(2)
        narrowing[:, axis] = torch.where(outside.view(2, -1).any(dim=0), _NARROWED, 1.0)
        shift += ((behind - ahead) * _MOVED_IN * sigma)[:, None] * tangent
    return shift, narrowing


def _in_plane_axes(rotations: Tensor) -> tuple[Tensor, Tensor]:
    """The world directions (N, 3) of a disc's local x and y: the rotation's first two columns."""
    w, x, y, _ = rotations.unbind(dim=-1)  # the shortest rotation from +z has no z part
    first = torch.stack((1 - 2 * y * y, 2 * x * y, -2 * w * y), dim=-1)
    second = torch.stack((2 * x * y, 1 - 2 * x * x, 2 * w * x), dim=-1)
    return first, second
