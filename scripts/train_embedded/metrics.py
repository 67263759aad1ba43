"""How good a cloud is against the exact world."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.packing import LARGEST_SIDE
from generation.rendering import render_layers, validator_camera
from generation.rendering.cameras import DUEL_VIEWS
from protocol.gaussians import GaussianCloud
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.world import Solid, average_solid

GRID = 64
_HALF = 0.9
YAWS = 36
_RENDER_SIZE = 128
_GROWTH = 2
_PROBE = 2 * 2 * _HALF / GRID
"""How far along a disc's axis its two sides are looked up: two voxels."""

BoolArray = NDArray[np.bool_]


def mean_colour(cloud: GaussianCloud) -> Tensor:
    """Mean RGB (3,) of the pixels that the cloud covers in the four views of the duel judge."""
    cameras = [validator_camera(index, _RENDER_SIZE) for index in DUEL_VIEWS]
    rgb, coverage = render_layers(cloud, cameras, backend="cpu")
    return torch.from_numpy(rgb.clip(0, 1).sum((0, 1, 2)) / max(float(coverage.sum()), 1e-6))


def solid_of_cloud(cloud: GaussianCloud) -> BoolArray:
    """Fills a cloud of flat discs that lies on a surface: (64, 64, 64) bool, subnet frame.

    Voxels with a disc in them are grown to close gaps, holes are filled and the growth undone.
    That tells the discs' insides from their outsides. A voxel near the surface is then inside if
    its centre lies on the inner side of the nearest disc, so that thin parts keep their thickness.
    """
    from scipy import ndimage, spatial

    shell = np.zeros((GRID,) * 3, dtype=bool)
    shell[_voxel(cloud.positions)] = True
    grown = ndimage.binary_dilation(shell, iterations=_GROWTH)
    solid: BoolArray = ndimage.binary_erosion(
        ndimage.binary_fill_holes(grown), iterations=_GROWTH, border_value=0
    )
    normals = _disc_normals(cloud)
    ahead, behind = (
        solid[_voxel(cloud.positions + sign * _PROBE * normals)].astype(int) for sign in (1, -1)
    )
    outward = normals * (behind - ahead)[:, None]

    near = np.argwhere(ndimage.binary_dilation(shell))
    centres = ((near + 0.5) / GRID * 2 - 1) * _HALF
    _, disc = spatial.cKDTree(cloud.positions).query(centres)
    side = ((centres - cloud.positions[disc]) * outward[disc]).sum(-1)
    solid[tuple(near[side < 0].T)] = True
    solid[tuple(near[side > 0].T)] = False
    return solid


def _voxel(positions: NDArray[np.float32]) -> tuple[NDArray[np.intp], ...]:
    index = np.floor((positions / _HALF + 1) * GRID / 2).astype(np.intp)
    return tuple(index.clip(0, GRID - 1).T)


def _disc_normals(cloud: GaussianCloud) -> NDArray[np.float32]:
    """The discs' thinnest axes (N, 3), of either sign."""
    w, x, y, z = (cloud.rotations / np.linalg.norm(cloud.rotations, axis=1, keepdims=True)).T
    axes = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
            [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
            [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    thinnest: NDArray[np.float32] = axes[cloud.log_scales.argmin(1), :, np.arange(len(w))]
    return thinnest


@cache
def true_solids(number: int) -> NDArray[np.uint8]:
    """The average shape at 36 yaws, framed as clouds are: (36, 64 ** 3 / 8), packed bits."""
    yaws = torch.arange(YAWS)[:, None] * (2 * torch.pi / YAWS)
    return np.stack([_packed(_framed(average_solid(SHAPES[number], yaw))) for yaw in yaws])


def _packed(voxels: Tensor) -> NDArray[np.uint8]:
    return np.packbits(voxels.numpy().reshape(-1))


def frame_of(solid: Solid) -> tuple[Tensor, Tensor]:
    """How one solid is framed as clouds are.

    Returns:
        The middle (1, 3) of its box in the scene, and what lengths are multiplied by, a scalar.
    """
    line = torch.linspace(-0.87, 0.87, 48)
    points = torch.cartesian_prod(line, line, line)[None]
    depth = (-solid.distance(points)).clamp_min(0)
    reached = depth > 0
    far = torch.where(reached, depth, -torch.inf)[..., None]
    high, low = (points + far).amax(1), (points - far).amin(1)
    return (high + low) / 2, LARGEST_SIDE / (high - low).amax()


def _framed(solid: Solid) -> Tensor:
    middle, scale = frame_of(solid)
    axis = ((torch.arange(GRID) + 0.5) / GRID * 2 - 1) * _HALF
    subnet = torch.cartesian_prod(axis, axis, axis)
    # Subnet (y, z, x) back to the scene's (x, y, z).
    scene = subnet[:, [2, 0, 1]] / scale + middle
    return solid.distance(scene[None]) <= 0


def best_yaw_iou(cloud: GaussianCloud, number: int) -> float:
    """Intersection over union of the cloud's solid with the true shape at the best yaw."""
    return _best_yaw_iou(np.packbits(solid_of_cloud(cloud).reshape(-1)), number)


def posed_iou(cloud: GaussianCloud, solid: Solid) -> float:
    """The same with one solid in the cloud's own pose."""
    truth, found = _framed(solid)[0].numpy(), solid_of_cloud(cloud).reshape(-1)
    return float((truth & found).sum() / (truth | found).sum())


def best_yaw_ious(cloud: GaussianCloud) -> Tensor:
    """The same with every object: (16,) float32."""
    found = np.packbits(solid_of_cloud(cloud).reshape(-1))
    return torch.tensor([_best_yaw_iou(found, number) for number in range(len(SHAPES))])


def _best_yaw_iou(found: NDArray[np.uint8], number: int) -> float:
    truth = true_solids(number)
    both, either = (np.bitwise_count(x).sum(1, dtype=int) for x in (truth & found, truth | found))
    return float((both / either).max())


def occupancy_iou(density: Tensor, threshold: float, solid: Solid, radius: float) -> float:
    """Intersection over union of a density grid (R, R, R) with one solid in the same frame."""
    line = torch.linspace(-radius, radius, density.shape[0])
    truth = solid.distance(torch.cartesian_prod(line, line, line)[None])[0] <= 0
    found = (density > threshold).flatten()
    return float((truth & found).sum() / (truth | found).sum())


def mask_iou(alpha: Tensor, truth: Tensor) -> float:
    """Intersection over union of two masks, each over one half."""
    a, b = alpha > 0.5, truth > 0.5
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def colour_key(image: Tensor) -> Tensor:
    """The mask (H, W) that a plain background gives away: what differs from the border's median.

    Args:
        image: (3, H, W) RGB in 0..1.
    """
    border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)
    background = border.median(dim=1).values
    distance: Tensor = (image - background[:, None, None]).norm(dim=0)
    return (distance > 0.12).float()
