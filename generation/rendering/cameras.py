"""Pinhole cameras, and the sixteen that the validator looks through."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

VALIDATOR_VIEWS = 16
VALIDATOR_SIZE = 518
DUEL_VIEWS = (1, 5, 9, 13)
"""The views of the 2 x 2 grid that the duel judge sees; view 1 is the front preview."""

ELEVATION, DISTANCE, FOV = 15.0, 2.5, 49.1


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera in the OpenCV convention: x right, y down, z forward.

    Attributes:
        world_to_camera: (4, 4) float64 rigid transform of column vectors.
        fx, fy: Focal lengths in pixels.
        cx, cy: Principal point in pixels; the centre of the first pixel is (0.5, 0.5).
        width, height: Picture size in pixels.
    """

    world_to_camera: Float64Array
    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    @property
    def intrinsics(self) -> Float64Array:
        """(3, 3) matrix K that takes camera coordinates to homogeneous pixels."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])


def orbit_camera(
    azimuth: float, elevation: float = 0.0, *, radius: float, fov: float, size: int
) -> Camera:
    """A square picture of the origin from a point on a sphere around it, +y up.

    Args:
        azimuth: Degrees; 0 looks from +z, 90 from +x.
        elevation: Degrees above the horizon, strictly between -90 and 90.
        radius: Distance from the origin in scene units, above 0.
        fov: Vertical field of view in degrees, strictly between 0 and 180.
        size: Width and height in pixels, at least 1.

    Raises:
        ValueError: A value is outside its range.
    """
    if not (-90 < elevation < 90 and radius > 0 and 0 < fov < 180 and size >= 1):
        raise ValueError(
            f"orbit camera needs -90 < elevation < 90, radius > 0, 0 < fov < 180 and size >= 1, "
            f"got elevation={elevation}, radius={radius}, fov={fov}, size={size}"
        )
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])
    right = np.array([math.cos(a), 0.0, -math.sin(a)])
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = right, np.cross(right, outward), -outward
    world_to_camera[2, 3] = radius
    focal = 0.5 * size / math.tan(math.radians(fov) / 2)
    return Camera(world_to_camera, focal, focal, size / 2, size / 2, size, size)


def azimuth(index: int) -> float:
    """Degrees of the validator's view `index`: sixteen steps from 0 to 360 inclusive."""
    return 360.0 * index / (VALIDATOR_VIEWS - 1)


def validator_camera(index: int, size: int = VALIDATOR_SIZE) -> Camera:
    """The validator's view `index` of 16; view 15 repeats view 0.

    Its azimuths are sixteen steps from 0 to 360 degrees inclusive, 24 degrees apart. Elevation is
    15 degrees, the distance 2.5 and the vertical field of view 49.1 degrees.

    Args:
        index: View number, 0..15.
        size: Width and height in pixels; the validator's own is 518.

    Raises:
        ValueError: There is no such view, or the size is not positive.
    """
    if not 0 <= index < VALIDATOR_VIEWS:
        raise ValueError(f"the validator has views 0 to {VALIDATOR_VIEWS - 1}, got {index}")
    return orbit_camera(azimuth(index), ELEVATION, radius=DISTANCE, fov=FOV, size=size)
