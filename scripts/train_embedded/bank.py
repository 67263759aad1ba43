"""The world's views, drawn once and kept on the device; light and colour are added per batch."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from scripts.train_embedded.files import write_atomically
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.shading import Light
from scripts.train_embedded.world import BACKGROUND, Solid, draw_solids, sample_points, trace

SHADE_UNIT = 1 / 200
"""Brightness of one step of `Bank.shades`."""


@dataclass(frozen=True)
class Bank:
    """V views of solids; all tensors are on one device.

    Attributes:
        objects: (V,) uint8 object numbers; views of one object lie together.
        variations: (V, 4) float32, yaws: (V,) float32 radians, of the solids.
        elevations: (V,) float32 radians, of the cameras.
        normals: (V, S, S, 3) int8, times 127.
        parts: (V, S, S) uint8, BACKGROUND beside the object.
        boxes: (V, 4) float32 left, top, right, bottom of the object, in shares of the side.
        points: (V, N, 3) float16 scene points, in random order.
        distances: (V, N) float16 signed distances of the points.
        point_parts: (V, N) uint8, the part nearest to a point.
        shades: (V, N) uint8 canonical brightness there, in `SHADE_UNIT`.
    """

    objects: Tensor
    variations: Tensor
    yaws: Tensor
    elevations: Tensor
    normals: Tensor
    parts: Tensor
    boxes: Tensor
    points: Tensor
    distances: Tensor
    point_parts: Tensor
    shades: Tensor

    @classmethod
    def draw(
        cls, views: int, size: int, points: int, radius: float, *, seed: int, device: torch.device
    ) -> "Bank":
        """Draws `views` views of every object, `size` pixels wide, with `points` points each."""
        generator = torch.Generator(device).manual_seed(seed)
        at_once = max(1, (8_000_000 if device.type == "cuda" else 70_000) // size**2)
        pieces = []
        with tqdm(total=views * len(SHAPES), desc="world", unit="view") as progress:
            for number in range(len(SHAPES)):
                for start in range(0, views, at_once):
                    count = min(at_once, views - start)
                    pieces.append(_draw_views(number, count, size, points, radius, generator))
                    progress.update(count)
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in pieces]) for f in fields(cls)})

    @classmethod
    def load(cls, file: Path, device: torch.device) -> "Bank":
        """Reads what `save` wrote."""
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return cls(**tensors).map(lambda tensor: tensor.to(device))

    def save(self, file: Path) -> None:
        """Writes all tensors."""
        tensors = {f.name: getattr(self, f.name).cpu() for f in fields(self)}
        write_atomically(file, lambda draft: torch.save(tensors, draft))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Bank":
        """Applies a function to every tensor."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})

    def select(self, index: Tensor) -> "Bank":
        """The views at an index (W,)."""
        return self.map(lambda tensor: tensor[index])

    def solids(self, number: int) -> Solid:
        """All solids of one object, in their order."""
        own = self.objects == number
        return Solid.posed(SHAPES[number], self.variations[own], self.yaws[own])

    def without_points(self) -> "Bank":
        """The pictures alone, for networks that see nothing else."""
        names = ("points", "distances", "point_parts", "shades")
        return replace(self, **{name: getattr(self, name)[:, :0] for name in names})

    def __len__(self) -> int:
        return len(self.objects)


@torch.no_grad()
def _draw_views(
    number: int, count: int, size: int, points: int, radius: float, generator: torch.Generator
) -> Bank:
    solid, elevation = draw_solids(SHAPES[number], count, generator)
    normals, parts = trace(solid, elevation, size)
    samples, distances = sample_points(solid, points, radius, generator)
    brightness = Light.canonical(count, generator.device).shade(solid.normals(samples))
    return Bank(
        objects=torch.full_like(elevation, number, dtype=torch.uint8),
        variations=solid.variation,
        yaws=solid.yaw,
        elevations=elevation,
        normals=normals,
        parts=parts,
        boxes=bounding_boxes(parts != BACKGROUND),
        points=samples.half(),
        distances=distances.half(),
        point_parts=solid.parts(samples).argmin(-1).to(torch.uint8),
        shades=(brightness / SHADE_UNIT).round().clamp(0, 255).to(torch.uint8),
    )


def bounding_boxes(masks: Tensor) -> Tensor:
    """Left, top, right, bottom (V, 4) of masks (V, S, S), in shares of the side."""
    size = masks.shape[-1]
    sides = []
    for axis in (1, 2):
        line = masks.any(axis).float()
        first = line.argmax(-1)
        sides.append((first, size - line.flip(-1).argmax(-1)))
    (left, right), (top, bottom) = sides
    return torch.stack((left, top, right, bottom), dim=-1).float() / size
