"""Volume rendering of a density field (NeRF, Mildenhall et al. 2020), for tests and comparison."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.chunking import map_in_chunks

# Rays end just inside the cube, where every sample still has features.
_BOX_SHRINK = 0.999


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks at the origin; the world is right-handed, z up.

    Attributes:
        elevation: Degrees above the x-y plane, between -90 and 90 (both excluded).
        azimuth: Degrees from +x towards +y.
        distance: From the origin, in world units.
        fov: Vertical field of view in degrees.
        height: Pixels.
        width: Pixels.
    """

    elevation: float = 0.0
    azimuth: float = 0.0
    distance: float = 1.9
    fov: float = 40.0
    height: int = 256
    width: int = 256

    def rays(self, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Returns the origin (3,) and the directions (H * W, 3) through the pixels' centres."""
        elevation, azimuth = math.radians(self.elevation), math.radians(self.azimuth)
        out = torch.tensor(
            [
                math.cos(elevation) * math.cos(azimuth),
                math.cos(elevation) * math.sin(azimuth),
                math.sin(elevation),
            ],
            device=device,
        )
        vertical = torch.tensor([0.0, 0.0, 1.0], device=device)
        right = torch.nn.functional.normalize(torch.linalg.cross(vertical, out), dim=0)
        up = torch.linalg.cross(out, right)
        focal = 0.5 * self.height / math.tan(math.radians(self.fov) / 2)
        columns = (torch.arange(self.width, device=device) + 0.5 - self.width / 2) / focal
        rows = (torch.arange(self.height, device=device) + 0.5 - self.height / 2) / focal
        directions = columns[None, :, None] * right - rows[:, None, None] * up - out
        return self.distance * out, torch.nn.functional.normalize(directions.flatten(0, 1), dim=1)


@torch.no_grad()
def render(model: TripoSR, scene_code: SceneCode, camera: Camera) -> Tensor:
    """Renders a model's field over white.

    Returns:
        (H, W, 3) float32 in 0..1.

    Raises:
        ValueError: The scene code does not have the model's shape.
    """
    origin, directions = camera.rays(model.device)
    samples = model.config.num_samples_per_ray

    def shade(start: int, stop: int) -> Tensor:
        return march_rays(
            lambda points: model.query(points, scene_code),
            origin,
            directions[start:stop],
            model.radius,
            samples,
        )

    pixels = map_in_chunks(shade, len(directions), max(1, model.query_chunk // samples), floor=1)
    return pixels.view(camera.height, camera.width, 3)


def march_rays(
    query: Callable[[Tensor], tuple[Tensor, Tensor]],
    origin: Tensor,
    directions: Tensor,
    radius: float,
    samples: int,
) -> Tensor:
    """Accumulates colour along rays through the cube, over white.

    Samples stand in the middle of equal segments between entry and exit. The step that turns
    density into alpha is 1 / samples, whatever the segment's length: so the weights were trained.

    Args:
        query: Maps points (N, 3) to density (N,) and colour (N, 3).
        origin: (3,).
        directions: (R, 3).
        radius: Half the side of the cube.
        samples: Samples per ray.

    Returns:
        (R, 3) RGB in 0..1; a ray that misses the cube is white.
    """
    half = _BOX_SHRINK * radius
    sides = torch.stack([(-half - origin) / directions, (half - origin) / directions])
    entry = sides.amin(0).amax(1).clamp(min=0)
    exit_ = sides.amax(0).amin(1)
    hit = exit_ > entry

    middles = (torch.arange(samples, device=origin.device) + 0.5) / samples
    depths = entry[:, None] + (exit_ - entry)[:, None] * middles
    points = origin + depths[..., None] * directions[:, None]
    # Rays that miss are sampled at the origin and masked, so that shapes do not depend on values.
    density, rgb = query(torch.where(hit[:, None, None], points, 0.0).flatten(0, 1))
    alpha = 1 - torch.exp(-density.view(-1, samples) / samples)
    alpha = torch.where(hit[:, None], alpha, 0.0)
    passed = torch.cumprod(1 - alpha, dim=1)
    reached = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], dim=1)
    colour = ((alpha * reached)[..., None] * rgb.view(-1, samples, 3)).sum(1)
    return colour + passed[:, -1:]
