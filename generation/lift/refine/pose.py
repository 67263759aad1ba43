"""Where a picture was taken from: a camera with gradients, and a first guess for it."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generation.rendering.cameras import DISTANCE, FOV, VALIDATOR_SIZE
from generation.rendering.cpu_backend import BLUR
from generation.rendering.device_cloud import DeviceCloud
from generation.rendering.differentiable import rasterize

FIELD_OF_VIEW = 40.0
"""Degrees, of the pictures that TripoSR was trained with."""

_ROUNDS = 3
_APART, _STEEPEST = 10.0, 60.0
"""Degrees between the elevations that are tried first, and the steepest of them."""
_UNUSUAL = 0.002
"""Mean squared error of coverage that an elevation of one standard deviation adds."""
_VALIDATOR_PIXELS = 0.5 * VALIDATOR_SIZE / math.tan(math.radians(FOV) / 2) / DISTANCE
"""Pixels per unit of length at the object in a validator's picture."""

ELEVATION, LOG_DISTANCE, RIGHT, DOWN = range(4)
"""Places in a pose (4,): radians above the horizon, log of the distance, and where the origin lies
in the camera's axes. The camera looks from the front, upright."""


@dataclass(frozen=True, eq=False)
class Lens:
    """A square picture.

    Attributes:
        size: Pixels per side.
        focal: In pixels.
        centre: (2,) principal point in pixels.
    """

    size: int
    focal: float
    centre: tuple[float, float]

    @classmethod
    def of(cls, size: int, fov: float = FIELD_OF_VIEW) -> "Lens":
        """Looks straight ahead with a field of view in degrees."""
        return cls(size, 0.5 * size / math.tan(math.radians(fov) / 2), (size / 2, size / 2))

    def draw(self, cloud: DeviceCloud, view: Tensor) -> Tensor:
        """Renders (size, size, 4): colours premultiplied by coverage, and coverage.

        The blur that a validator's pictures have is as wide on the object here, at any size.

        Args:
            cloud: In the frame of finished clouds.
            view: (4, 4) world to camera.
        """
        (x, y), f = self.centre, self.focal
        intrinsics = view.new_tensor([[f, 0, x], [0, f, y], [0, 0, 1]])
        pixels = f / float(view[2, 3].detach())
        colour, coverage, _ = rasterize(
            cloud,
            view[None],
            intrinsics[None],
            self.size,
            self.size,
            blur=BLUR * (pixels / _VALIDATOR_PIXELS) ** 2,
        )
        return torch.cat([colour[0], coverage[0, ..., None]], dim=-1)


def view_of(pose: Tensor) -> Tensor:
    """The world-to-camera matrix (4, 4) of a pose (4,), OpenCV axes."""
    elevation, log_distance, right, down = pose.unbind()
    cos, sin = elevation.cos(), elevation.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = (
        *(one, zero, zero, right),
        *(zero, -cos, sin, down),
        *(zero, -sin, -cos, log_distance.exp()),
        *(zero, zero, zero, one),
    )
    return torch.stack(rows).view(4, 4)


@torch.no_grad()
def first_pose(
    cloud: DeviceCloud, alpha: Tensor, lens: Lens, elevation: float, spread: float
) -> Tensor:
    """The best of one pose for each of some elevations, which differ in their outlines.

    Distance and place of each follow from the silhouette's area and centre.

    Args:
        cloud: In the frame of finished clouds.
        alpha: (S, S) coverage in the picture, not 0 everywhere.
        lens: Of the picture.
        elevation: Usual degrees above the horizon.
        spread: Standard deviation of that; what lies beyond two of them is not tried.
    """
    area, centre = _moments(alpha)
    each_side = int(2 * spread / _APART)
    tried = [elevation + number * _APART for number in range(-each_side, each_side + 1)]
    poses, errors = [], []
    # Each once: the steepest are all the same.
    for degrees in dict.fromkeys(max(-_STEEPEST, min(each, _STEEPEST)) for each in tried):
        pose = alpha.new_tensor([math.radians(degrees), math.log(2 * DISTANCE), 0.0, 0.0])
        for _ in range(_ROUNDS):
            found_area, found_centre = _moments(lens.draw(cloud, view_of(pose))[..., 3])
            pose[LOG_DISTANCE] += 0.5 * (found_area / area).log().clamp(-1, 1)
            pose[RIGHT:] += (centre - found_centre) / lens.focal * pose[LOG_DISTANCE].exp()
        poses.append(pose)
        if each_side:
            found = lens.draw(cloud, view_of(pose))[..., 3]
            unusual = unlikeliness(pose, elevation, spread)
            errors.append((found - alpha).square().mean() + unusual)
    return poses[int(torch.stack(errors).argmin())] if errors else poses[0]


def unlikeliness(pose: Tensor, elevation: float, spread: float) -> Tensor:
    """What the elevation of a pose adds to a mean squared error of coverage."""
    away = pose[ELEVATION] - math.radians(elevation)
    return _UNUSUAL * (away / math.radians(spread)).square()


def _moments(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Area, and centre (2,) right and down, of a silhouette (S, S), in pixels."""
    area = alpha.sum().clamp_min(1e-6)
    line = torch.arange(len(alpha), device=alpha.device) + 0.5
    return area, torch.stack([(alpha.sum(0) * line).sum(), (alpha.sum(1) * line).sum()]) / area
