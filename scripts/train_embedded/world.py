"""The analytic world: posed solids, their exact occupancy and colour, and pictures of them.

The frame is TripoSR's: z up, the camera towards +x, the picture's right along +y, everything in a
cube of half-side 0.87.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scripts.train_embedded.objects import SHAPES, VARIATIONS, Paint, Shape

REACH = 0.86
"""Radius of the ball around the origin that every solid just fits in."""

CAMERA_DISTANCE = 3.4
CAMERA_HALF_VIEW = 0.97
"""Half of the side that a picture covers at the origin."""

MAX_PARTS = 4
BACKGROUND = 255
"""Part number of pixels beside the object."""

YAW_SPREAD = 20.0
ELEVATION, ELEVATION_SPREAD = 20.0, 5.0

MARCH_STEPS = 48
HIT = 0.003


def paint_table(device: torch.device | str = "cpu") -> Tensor:
    """(objects, parts, 4) float32: share of the named colour, then the fixed colour."""
    table = torch.zeros(len(SHAPES), MAX_PARTS, 4)
    nowhere, everything = torch.zeros(1, 1, 3), torch.zeros(1, VARIATIONS)
    for index, shape in enumerate(SHAPES):
        paints: list[Paint] = [paint for paint, _ in shape.parts(nowhere, everything)]
        for part, paint in enumerate(paints):
            table[index, part] = torch.tensor([paint.main, *paint.fixed])
    return table.to(device)


@dataclass(frozen=True)
class Solid:
    """V solids of one kind, in the scene's frame.

    Attributes:
        shape: What they are.
        variation: (V, 4) float32 in -1..1.
        yaw: (V,) float32 radians.
        centre: (V, 3) float32: the middle of the shape's bounding box in its own frame.
        scale: (V,) float32: how many of the shape's units make one of the scene's.
    """

    shape: Shape
    variation: Tensor
    yaw: Tensor
    centre: Tensor
    scale: Tensor

    @classmethod
    def posed(cls, shape: Shape, variation: Tensor, yaw: Tensor) -> "Solid":
        """Centres the shapes on their bounding boxes and scales them to `REACH`."""
        line = torch.linspace(-1.25, 1.25, 51, device=variation.device)
        # Shapes stand on or around the ground; none is higher than 1.6 or lower than -0.9.
        grid = torch.cartesian_prod(line, line, line + 0.35)
        points = grid.expand(len(variation), -1, -1)
        distance = torch.stack([d for _, d in _parts(shape, points, variation)]).amin(0)
        # A ball of the depth around an inner point is inside too: exact for faces and edges.
        depth = torch.where(distance < 0, -distance, -torch.inf)[..., None]
        high, low = (points + depth).amax(1), (points - depth).amin(1)
        centre = (high + low) / 2
        reach = ((points - centre[:, None]).norm(dim=-1) + depth[..., 0]).amax(1)
        return cls(shape, variation, yaw, centre, reach / REACH)

    def select(self, view: int) -> "Solid":
        """One of the solids, as a batch of its own."""
        return self.part(slice(view, view + 1))

    def part(self, views: slice) -> "Solid":
        """Some of the solids."""
        variation, yaw, centre, scale = self.variation, self.yaw, self.centre, self.scale
        return Solid(self.shape, variation[views], yaw[views], centre[views], scale[views])

    def parts(self, points: Tensor) -> Tensor:
        """Distances (V, N, P) of scene points (V, N, 3) to each part."""
        cos, sin = torch.cos(self.yaw)[:, None], torch.sin(self.yaw)[:, None]
        x, y, z = points.unbind(-1)
        turned = torch.stack((cos * x + sin * y, cos * y - sin * x, z), dim=-1)
        own = turned * self.scale[:, None, None] + self.centre[:, None]
        distances = torch.stack([d for _, d in _parts(self.shape, own, self.variation)], dim=-1)
        return distances / self.scale[:, None, None]

    def distance(self, points: Tensor) -> Tensor:
        """Signed distance (V, N) of scene points (V, N, 3), negative inside."""
        return self.parts(points).amin(-1)

    def normals(self, points: Tensor, step: float = 2e-3) -> Tensor:
        """Unit gradient (V, N, 3) of the distance, by differences at a tetrahedron's corners."""
        corners = points.new_tensor([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]])
        total = torch.zeros_like(points)
        for corner in corners:
            total += corner * self.distance(points + step * corner)[..., None]
        return torch.nn.functional.normalize(total, dim=-1)


def _parts(shape: Shape, points: Tensor, variation: Tensor) -> list[tuple[Paint, Tensor]]:
    return shape.parts(points, variation)


def draw_solids(shape: Shape, count: int, generator: torch.Generator) -> tuple[Solid, Tensor]:
    """Draws solids of one kind in their usual pose and camera elevations (V,) in radians."""
    device = generator.device
    uniform = torch.rand(count, VARIATIONS + 2, generator=generator, device=device) * 2 - 1
    yaw = torch.deg2rad(shape.yaw + YAW_SPREAD * uniform[:, -1])
    elevation = torch.deg2rad(ELEVATION + ELEVATION_SPREAD * uniform[:, -2])
    return Solid.posed(shape, uniform[:, :VARIATIONS].contiguous(), yaw), elevation


def average_solid(shape: Shape, yaw: Tensor) -> Solid:
    """The shape with average proportions at several yaws (V,)."""
    variation = torch.zeros(len(yaw), VARIATIONS, device=yaw.device)
    return Solid.posed(shape, variation, yaw)


def camera_rays(elevation: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Origins (V, 1, 3) and unit directions (V, size * size, 3), row by row from the top left."""
    cos, sin, zero = torch.cos(elevation), torch.sin(elevation), torch.zeros_like(elevation)
    outward = torch.stack((cos, zero, sin), dim=-1)
    up = torch.stack((-sin, zero, cos), dim=-1)
    line = ((torch.arange(size, device=elevation.device) + 0.5) / size * 2 - 1) * CAMERA_HALF_VIEW
    v, u = torch.meshgrid(-line, line, indexing="ij")
    right = torch.tensor([0.0, 1.0, 0.0], device=elevation.device)
    directions = (
        u.flatten()[:, None] * right
        + v.flatten()[:, None] * up[:, None]
        - CAMERA_DISTANCE * outward[:, None]
    )
    return CAMERA_DISTANCE * outward[:, None], torch.nn.functional.normalize(directions, dim=-1)


def trace(solid: Solid, elevation: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sphere tracing (Hart 1996).

    Args:
        solid: V solids.
        elevation: (V,) radians of the camera above the horizon.
        size: Pixels per side.

    Returns:
        Surface normals (V, size, size, 3) int8, times 127, and part numbers (V, size, size)
        uint8, `BACKGROUND` beside the object.
    """
    origin, direction = camera_rays(elevation, size)
    normals, parts = trace_rays(solid, origin, direction, CAMERA_DISTANCE)
    return normals.view(-1, size, size, 3), parts.view(-1, size, size)


def trace_rays(
    solid: Solid, origin: Tensor, direction: Tensor, distance: float
) -> tuple[Tensor, Tensor]:
    """Traces any rays; see `trace`.

    Args:
        solid: V solids.
        origin: (V, 1, 3).
        direction: (V, N, 3), unit vectors.
        distance: Of the origins from the scene's.

    Returns:
        Surface normals (V, N, 3) int8, times 127, and part numbers (V, N) uint8.
    """
    start, end = distance - REACH, distance + REACH
    travelled = torch.full(direction.shape[:2], start, device=direction.device)
    for _ in range(MARCH_STEPS):
        ahead = solid.distance(origin + travelled[..., None] * direction)
        travelled = travelled + ahead.clamp(-0.05, 0.5)
    points = origin + travelled[..., None] * direction
    distances, part = solid.parts(points).min(-1)
    hit = (distances < HIT) & (travelled < end)
    part = torch.where(hit, part, BACKGROUND).to(torch.uint8)
    return (solid.normals(points) * 127 * hit[..., None]).round().to(torch.int8), part


def sample_points(
    solid: Solid, count: int, radius: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draws points for the 3D loss: three eighths anywhere in the cube, the rest near the surface.

    Args:
        solid: V solids.
        count: Points for each, a multiple of 8.
        radius: Half-side of the cube.
        generator: On the solids' device.

    Returns:
        Points (V, count, 3) in random order, and their signed distances (V, count).
    """
    device, views = solid.yaw.device, len(solid.yaw)
    points = (torch.rand(views, count, 3, generator=generator, device=device) * 2 - 1) * radius
    near = points[:, count * 3 // 8 :]
    for _ in range(3):
        near = near - solid.distance(near)[..., None].clamp(-0.4, 0.4) * solid.normals(near)
    noise = torch.randn(near.shape, generator=generator, device=device)
    # Half of them hug the surface, where the colour is learnt.
    spread = torch.where(torch.arange(near.shape[1], device=device) % 2 == 0, 0.01, 0.05)
    near = (near + spread[:, None] * noise).clamp(-radius, radius)
    points = torch.cat([points[:, : count * 3 // 8], near], dim=1)
    order = torch.randperm(count, generator=generator, device=device)
    points = points[:, order]
    return points, solid.distance(points)
