"""Views of a cloud beside the exact views of the solid that it should be."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from generation.rendering import Camera, render_layers, validator_camera
from generation.rendering.cameras import VALIDATOR_VIEWS
from protocol.gaussians import GaussianCloud
from scripts.train_embedded.metrics import frame_of
from scripts.train_embedded.shading import Light, halve, over, paint_pixels
from scripts.train_embedded.world import BACKGROUND as NOTHING
from scripts.train_embedded.world import REACH, Solid, trace_rays

SIZE = 64
BACKGROUND = 0.5
"""Grey behind both."""


def exact_views(solid: Solid, colours: Tensor) -> Tensor:
    """The validator's 16 views of a solid as it should look, (16, 3, 64, 64) RGB in 0..1.

    The solid is framed as clouds are: its box is centred, and the longest side is the same. It
    stands in the canonical light before mid-grey. View 15, which repeats view 0, counts too.

    Args:
        solid: One solid.
        colours: (P, 3) RGB of its parts.
    """
    frame = frame_of(solid)
    cameras = [validator_camera(index, 2 * SIZE) for index in range(VALIDATOR_VIEWS)]
    return halve(torch.stack([exact_view(solid, colours, camera, frame) for camera in cameras]))


def views_psnr(cloud: GaussianCloud, exact: Tensor) -> float:
    """Peak signal-to-noise ratio of a cloud's views before mid-grey, in decibels.

    Args:
        cloud: In the subnet's frame.
        exact: See `exact_views`.

    Returns:
        Of the mean squared error over all pixels of all views.
    """
    cameras = [validator_camera(index, SIZE) for index in range(VALIDATOR_VIEWS)]
    rgb, coverage = render_layers(cloud, cameras, backend="cpu")
    found = torch.from_numpy(rgb + BACKGROUND * (1 - coverage[..., None])).clamp(0, 1)
    error = float((found.permute(0, 3, 1, 2) - exact).square().mean())
    return -10 * math.log10(error)


@torch.no_grad()
def exact_view(
    solid: Solid, colours: Tensor, camera: Camera, frame: tuple[Tensor, Tensor]
) -> Tensor:
    """A solid, framed as `frame_of` says, before grey (3, H, W) in 0..1; see `exact_views`."""
    middle, scale = frame
    line = torch.arange(camera.width) + 0.5
    y, x = torch.meshgrid(
        (line - camera.cy) / camera.fy, (line - camera.cx) / camera.fx, indexing="ij"
    )
    to_world = torch.from_numpy(camera.world_to_camera).inverse().float()
    rays = torch.stack((x, y, torch.ones_like(x)), dim=-1).flatten(0, 1) @ to_world[:3, :3].T
    # The subnet's (y, z, x) back to the scene's (x, y, z).
    rays = functional.normalize(rays[:, [2, 0, 1]], dim=-1)
    origin = to_world[[2, 0, 1], 3] / scale + middle[0]
    # Rays that miss the ball around the scene miss the solid.
    near = (rays @ origin).square() > origin.square().sum() - REACH**2
    normals = torch.zeros(1, len(rays), 3, dtype=torch.int8)
    parts = torch.full((1, len(rays)), NOTHING, dtype=torch.uint8)
    normals[:, near], parts[:, near] = trace_rays(
        solid, origin[None, None], rays[None, near], float(origin.norm())
    )
    square = (1, camera.height, camera.width)
    light = Light.canonical(1, "cpu")
    rgba = paint_pixels(normals.view(*square, 3), parts.view(square), colours[None], light)
    return over(rgba, torch.full((1, 3), BACKGROUND))[0]
