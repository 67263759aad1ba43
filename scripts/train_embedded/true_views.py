"""Exact examples of the world: one picture, and how the same object looks from all around."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from generation.lift.refine.pose import LOG_DISTANCE, RIGHT, Lens, view_of
from generation.packing import LARGEST_SIDE
from generation.pictures.framing import resize_foreground
from generation.rendering.cameras import (
    DISTANCE,
    ELEVATION,
    FOV,
    VALIDATOR_VIEWS,
    Camera,
    azimuth,
    orbit_camera,
)
from generation.rendering.validator import REFERENCE_SIDE
from scripts.train_embedded.evaluate import picture_of
from scripts.train_embedded.metrics import frame_of
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.shading import (
    Light,
    halve,
    jitter_colours,
    over,
    paint_pixels,
    part_colours,
)
from scripts.train_embedded.world import (
    BACKGROUND,
    CAMERA_DISTANCE,
    CAMERA_HALF_VIEW,
    REACH,
    Solid,
    draw_solids,
    paint_table,
    trace,
    trace_rays,
)

_TO_SCENE = (2, 0, 1)
"""The subnet's (x, y, z), named in the scene's order."""

_TO_SUBNET = (1, 2, 0)
"""The scene's (x, y, z), named in the subnet's order."""

_SEED = 2121


@dataclass(frozen=True, eq=False)
class Example:
    """One object in a held-out colour.

    Attributes:
        solid: The object, a batch of one.
        elevation: Of the picture's camera above the horizon, in radians.
        cutout: (S, S, 4) uint8, its exact cut-out, framed.
        centre: Where the picture's middle lies in the cut-out, in pixels.
        focal: The picture's focal length in pixels.
        colours: (1, parts, 3) RGB.
        light: The picture's light.
    """

    solid: Solid
    elevation: float
    cutout: NDArray[np.uint8]
    centre: tuple[float, float]
    focal: float
    colours: Tensor
    light: Light

    def camera(self, size: int) -> tuple[Lens, Tensor]:
        """The cut-out's camera, in the frame of finished clouds.

        Args:
            size: Pixels per side.

        Returns:
            Lens and pose, as `Refinement` takes them.
        """
        middle, scale = frame_of(self.solid)
        pose = torch.tensor([self.elevation, 0.0, 0.0, 0.0])
        # The camera looks at the scene's origin, from which the cloud's is moved.
        moved = view_of(pose)[:3, :3] @ middle[0, list(_TO_SUBNET)] * scale
        pose[LOG_DISTANCE] = (CAMERA_DISTANCE * scale + moved[2]).log()
        pose[RIGHT:] = moved[:2]
        zoom = size / len(self.cutout)
        return Lens(size, zoom * self.focal, (zoom * self.centre[0], zoom * self.centre[1])), pose

    @torch.no_grad()
    def views(self, cameras: list[Camera]) -> Tensor:
        """Pictures (C, 3, H, W) on white, in the light of the cut-out.

        Args:
            cameras: Of one size, in the frame of finished clouds.
        """
        return torch.cat([self._view(camera) for camera in cameras])

    def _view(self, camera: Camera) -> Tensor:
        middle, scale = frame_of(self.solid)
        size, to_world = camera.width, torch.tensor(camera.world_to_camera).float().inverse()
        line = torch.arange(size) + 0.5
        v, u = torch.meshgrid(line, line, indexing="ij")
        rays = torch.stack(
            [(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, torch.ones_like(u)], dim=-1
        )
        rays = functional.normalize(rays.flatten(0, 1) @ to_world[:3, :3].T, dim=-1)
        directions = rays[:, list(_TO_SCENE)]
        origin = to_world[:3, 3][list(_TO_SCENE)] / scale + middle[0]
        # Rays that miss the ball around the scene miss the solid.
        near = (directions @ origin).square() > origin.square().sum() - REACH**2
        normals = torch.zeros(1, size * size, 3, dtype=torch.int8)
        parts = torch.full((1, size * size), BACKGROUND, dtype=torch.uint8)
        normals[:, near], parts[:, near] = trace_rays(
            self.solid, origin[None, None], directions[None, near], float(origin.norm())
        )
        square = (1, size, size)
        rgba = paint_pixels(normals.view(*square, 3), parts.view(square), self.colours, self.light)
        return over(rgba, torch.ones(1, 3))


def draw_example(number: int, shape: int, colour: int, size: int) -> Example:
    """Draws the object of one evaluation prompt.

    Args:
        number: Of the prompt; the same number gives the same example.
        shape: Number of the object.
        colour: Number of the colour.
        size: Pixels per side of the picture before it is framed.
    """
    generator = torch.Generator().manual_seed(_SEED + number)
    solid, elevation = draw_solids(SHAPES[shape], 1, generator)
    normals, parts = trace(solid, elevation, 2 * size)
    main = jitter_colours(torch.tensor([colour]), generator)
    colours = part_colours(paint_table(), torch.tensor([shape]), main)
    light = Light.draw(1, generator)
    rgba = halve(paint_pixels(normals, parts, colours, light))[0]
    exact = picture_of(torch.cat([rgba[:3] / rgba[3].clamp_min(1e-3), rgba[3:]]))
    cutout = np.array(resize_foreground(exact))
    # Where the object's first opaque pixel was and is says how framing moved it.
    opaque = [(alpha > 0).nonzero() for alpha in (np.array(exact)[..., 3], cutout[..., 3])]
    (top, left), (row, column) = ((rows.min(), columns.min()) for rows, columns in opaque)
    return Example(
        solid=solid,
        elevation=float(elevation),
        cutout=cutout,
        centre=(float(size / 2 + column - left), float(size / 2 + row - top)),
        focal=size / 2 / CAMERA_HALF_VIEW * CAMERA_DISTANCE,
        colours=colours,
        light=light,
    )


def cameras_around(size: int, views: int = VALIDATOR_VIEWS) -> list[Camera]:
    """The validator's cameras, as far from a finished cloud as it is from a rescaled one."""
    radius = DISTANCE * LARGEST_SIDE / REFERENCE_SIDE
    return [
        orbit_camera(azimuth(index), ELEVATION, radius=radius, fov=FOV, size=size)
        for index in range(views)
    ]


def psnr(found: Tensor, expected: Tensor) -> Tensor:
    """Decibels (V,) of pictures (V, ...) in 0..1."""
    return -10 * (found - expected).square().flatten(1).mean(1).clamp_min(1e-8).log10()
