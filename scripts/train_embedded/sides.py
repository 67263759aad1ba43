"""Solids seen in one picture and from other sides, in the frame that DreamGaussian works in.

That frame has the picture's framed cut-out for its known view: its origin is the point at the
middle of the cut-out, at the depth of the solid's middle, and the cut-out's border is as far from
it as the border of a view.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, multiprocessing
from torch.nn import functional
from tqdm import tqdm

from generation.lift.dreamgaussian.denoiser import Placement
from scripts.train_embedded.bank import bounding_boxes
from scripts.train_embedded.files import write_atomically
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.train_triposr import FOREGROUND_RATIO
from scripts.train_embedded.world import (
    BACKGROUND,
    CAMERA_DISTANCE,
    CAMERA_HALF_VIEW,
    HIT,
    MARCH_STEPS,
    REACH,
    Solid,
    draw_solids,
    trace,
)

MARGIN = 0.01
"""How far the boxes of cut-outs reach beyond the object, on average, in shares of the picture."""

_CLOSE = 1e-4
"""Rays this near to the surface have arrived."""

_LOWEST, _HIGHEST = -30.0, 50.0
"""Degrees above the horizon of other sides."""


@dataclass(frozen=True)
class SidesPlan:
    """How many sides are drawn.

    Attributes:
        solids: Of every object.
        sides: Of every solid, beside its picture.
        size: Pixels per side of a view; it is drawn twice as fine.
        seed: Of everything that is drawn.
    """

    solids: int = 160
    sides: int = 6
    size: int = 48
    seed: int = 1717


@dataclass(frozen=True)
class Sides:
    """V solids in one picture and from T other sides each; all tensors are on one device.

    Attributes:
        objects: (V,) uint8 object numbers.
        elevations: (V,) float32 radians: from where the picture shows the frame's origin.
        normals: (V, S, S, 3) int8, times 127, of the pictures.
        parts: (V, S, S) uint8, BACKGROUND beside the object.
        boxes: (V, 4) float32 left, top, right, bottom of the object, in shares of the side.
        angles: (V, T, 2) float32 azimuth and elevation in radians of the other sides.
        side_normals: (V, T, 2s, 2s, 3) int8.
        side_parts: (V, T, 2s, 2s) uint8.
    """

    objects: Tensor
    elevations: Tensor
    normals: Tensor
    parts: Tensor
    boxes: Tensor
    angles: Tensor
    side_normals: Tensor
    side_parts: Tensor

    @classmethod
    def draw(cls, plan: SidesPlan, placement: Placement, picture: int, jobs: int) -> "Sides":
        """Draws solids in their usual poses.

        Args:
            plan: How many.
            placement: Of the frame's cameras.
            picture: Pixels per side of the pictures, even.
            jobs: Processes, one thread each; 1 draws in this one.
        """
        tasks = [(plan, placement, picture, number) for number in range(len(SHAPES))]
        bar = partial(tqdm, total=len(tasks), desc="sides")
        if jobs == 1:
            drawn = list(bar(map(_draw_object, tasks)))
        else:
            with multiprocessing.get_context("spawn").Pool(jobs, torch.set_num_threads, (1,)) as p:
                drawn = list(bar(p.imap(_draw_object, tasks)))
        return cls(*(torch.cat(tensors) for tensors in zip(*drawn, strict=True)))

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Sides":
        """Reads what `save` wrote."""
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return cls(**tensors).map(lambda tensor: tensor.to(device))

    def save(self, file: Path) -> None:
        """Writes all tensors."""
        tensors = {f.name: getattr(self, f.name).cpu() for f in fields(self)}
        write_atomically(file, lambda draft: torch.save(tensors, draft))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Sides":
        """Applies a function to every tensor."""
        return Sides(**{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def __len__(self) -> int:
        return len(self.objects)


@torch.no_grad()
def _draw_object(task: tuple[SidesPlan, Placement, int, int]) -> tuple[Tensor, ...]:
    plan, placement, picture, number = task
    generator = torch.Generator().manual_seed(plan.seed + number)
    solids, elevation = draw_solids(SHAPES[number], plan.solids, generator)
    normals, parts = trace(solids, elevation, picture)
    boxes = bounding_boxes(parts != BACKGROUND)
    origin, unit = frame_of_picture(elevation, boxes, placement)
    away = CAMERA_DISTANCE * outward(torch.zeros_like(elevation), elevation) - origin
    uniform = torch.rand(plan.solids, plan.sides, 2, generator=generator)
    low, high = (torch.tensor(angle).deg2rad() for angle in (_LOWEST, _HIGHEST))
    angles = torch.stack(
        [(uniform[..., 0] * 2 - 1) * torch.pi, low + (high - low) * uniform[..., 1]], dim=-1
    )
    seen = [
        trace_side(solids.select(i), origin[i], unit[i], angles[i], placement, 2 * plan.size)
        for i in range(plan.solids)
    ]
    return (
        torch.full((plan.solids,), number, dtype=torch.uint8),
        (away[:, 2] / away.norm(dim=-1)).asin(),
        normals,
        parts,
        boxes,
        angles,
        torch.stack([found for found, _ in seen]),
        torch.stack([found for _, found in seen]),
    )


def outward(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors (..., 3) from the origin to cameras, in the scene's axes."""
    cos = elevation.cos()
    return torch.stack([cos * azimuth.cos(), cos * azimuth.sin(), elevation.sin()], dim=-1)


def frame_of_picture(
    elevation: Tensor, boxes: Tensor, placement: Placement
) -> tuple[Tensor, Tensor]:
    """The frame that a picture's framed cut-out defines.

    Args:
        elevation: (V,) radians, of the pictures' cameras.
        boxes: (V, 4) of the objects in the pictures, in shares of the side.
        placement: Of the frame's cameras.

    Returns:
        The frame's origin (V, 3) in the scene, and its unit of length (V,) there.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    middle = (low + high - 1) * CAMERA_HALF_VIEW
    half = ((high - low).amax(-1) + 2 * MARGIN) / FOREGROUND_RATIO * CAMERA_HALF_VIEW
    zero = torch.zeros_like(elevation)
    right = torch.tensor([0.0, 1.0, 0.0])
    up = torch.stack([-elevation.sin(), zero, elevation.cos()], dim=-1)
    return middle[:, :1] * right - middle[:, 1:] * up, half / placement.half_view


def trace_side(
    solid: Solid,
    origin: Tensor,
    unit: Tensor,
    angles: Tensor,
    placement: Placement,
    size: int,
) -> tuple[Tensor, Tensor]:
    """Traces one solid from T sides.

    Args:
        solid: A batch of one.
        origin: (3,) of the frame, in the scene.
        unit: Of the frame's lengths, in the scene; a scalar.
        angles: (T, 2) azimuth and elevation in radians.
        placement: Of the frame's cameras.
        size: Pixels per side.

    Returns:
        Normals (T, size, size, 3) int8, times 127, and part numbers (T, size, size) uint8.
    """
    azimuth, elevation = angles.unbind(-1)
    ahead = -outward(azimuth, elevation)
    right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    up = torch.linalg.cross(right, ahead)
    line = ((torch.arange(size) + 0.5) / size * 2 - 1) * placement.half_view / placement.distance
    v, u = torch.meshgrid(-line, line, indexing="ij")
    rays = u.flatten()[:, None] * right[:, None] + v.flatten()[:, None] * up[:, None]
    rays = functional.normalize(rays + ahead[:, None], dim=-1).flatten(0, 1)
    eyes = origin - ahead * placement.distance * unit
    eyes = eyes[:, None].expand(-1, size * size, -1).flatten(0, 1)
    # Where rays come into the ball around the scene; those that miss it miss the solid.
    along = (rays * eyes).sum(-1)
    inside = along.square() - eyes.square().sum(-1) + REACH**2
    near = inside > 0
    enter = eyes[near] + (-along[near] - inside[near].sqrt())[:, None] * rays[near]
    normals = torch.zeros(len(rays), 3, dtype=torch.int8)
    parts = torch.full((len(rays),), BACKGROUND, dtype=torch.uint8)
    normals[near], parts[near] = _march(solid, enter, rays[near])
    return normals.view(-1, size, size, 3), parts.view(-1, size, size)


def _march(solid: Solid, start: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """What `world.trace_rays` finds along rays (N, 3); those that are done go no further."""
    travelled, going = torch.zeros(len(start)), torch.arange(len(start))
    for _ in range(MARCH_STEPS):
        ahead = solid.distance((start[going] + travelled[going, None] * direction[going])[None])[0]
        travelled[going] += ahead.clamp(-0.05, 0.5)
        going = going[(ahead.abs() > _CLOSE) & (travelled[going] < 2 * REACH)]
    points = start + travelled[:, None] * direction
    distances, part = (found[0] for found in solid.parts(points[None]).min(-1))
    hit = (distances < HIT) & (travelled < 2 * REACH)
    normals = torch.zeros(len(start), 3, dtype=torch.int8)
    normals[hit] = (solid.normals(points[None, hit])[0] * 127).round().to(torch.int8)
    return normals, torch.where(hit, part, BACKGROUND).to(torch.uint8)
