"""What the small TripoSplat learns of the world's solids: exact latents, surfaces and Gaussians.

Everything is in the frame of its networks: 0..1 along every axis, the world's cube in the middle.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from scripts.train_embedded.bank import SHADE_UNIT, Bank
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.shading import Light
from scripts.train_embedded.world import Solid

SIDE = 1.8
"""Side of the networks' box in the world's units."""

LATENT_CHANNELS = 16

FLATNESS = 0.2
"""Deviation of a Gaussian across the surface over that along it."""

_GAUSSIANS = 20_000
_OVERLAP = 0.7
"""Deviation of a Gaussian along the surface, over the distance between neighbours."""

_SHELL = 0.03
_REACH = 0.25
"""Signed distances are clipped to this many sides of the box."""


@dataclass(frozen=True)
class SurfacePlan:
    """How finely surfaces are measured.

    Attributes:
        surface: Points spread over a surface.
        anchors: Points whose Gaussians are known.
        cells: Cells per axis that anchors are drawn in.
    """

    surface: int = 4096
    anchors: int = 512
    cells: int = 32


@dataclass(frozen=True)
class Patches:
    """Places on the surfaces of V solids.

    Attributes:
        positions: (V, N, 3) float16: relative to what they are nearest to, in sides of the box.
        normals: (V, N, 3) int8, times 127.
        parts: (V, N) uint8.
        shades: (V, N) uint8 canonical brightness, in `SHADE_UNIT`.
    """

    positions: Tensor
    normals: Tensor
    parts: Tensor
    shades: Tensor

    def colours(self, part_colours: Tensor) -> Tensor:
        """RGB (V, N, 3) in the canonical light, given the colours of the parts (V, P, 3)."""
        index = self.parts.long()[..., None].expand(-1, -1, 3)
        shade = self.shades.float() * SHADE_UNIT
        return (part_colours.gather(1, index) * shade[..., None]).clamp(0, 1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Patches":
        """Applies a function to every tensor."""
        return Patches(**{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class Surfaces:
    """V solids; all tensors are on one device.

    Attributes:
        distances: (V, L) float16 signed distances at the latent's points, in sides of the box.
        nearest: (V, L): the nearest places on the surface.
        surface: (V, M, 3) float16 points spread evenly over the surface, 0..1.
        anchors: (V, N, 3) float16 points as the octree draws them, 0..1.
        discs: (V, N x n): the places on the surface nearest to the Gaussians of the anchors.
        sizes: (V,) float32 deviation of a Gaussian along the surface, in sides of the box.
        elevations: (V,) float32 radians of the cameras.
    """

    distances: Tensor
    nearest: Patches
    surface: Tensor
    anchors: Tensor
    discs: Patches
    sizes: Tensor
    elevations: Tensor

    @classmethod
    def measure(
        cls, bank: Bank, points: Tensor, offsets: Tensor, plan: SurfacePlan, *, seed: int
    ) -> "Surfaces":
        """Measures all solids of a bank.

        Args:
            bank: Says what they are.
            points: (L, 3) of the latent, 0..1.
            offsets: (n, 3) of a point's Gaussians where the Gaussian network says 0.
            plan: How many points.
            seed: Of what is drawn.
        """
        device = bank.objects.device
        generator = torch.Generator(device).manual_seed(seed)
        at_once = 16 if device.type == "cuda" else 1
        pieces = []
        for solid in tqdm(_split(bank, at_once), desc="surfaces", total=len(bank) // at_once):
            pieces.append(_measure(solid, points.to(device), offsets.to(device), plan, generator))
        joined = cls.join(pieces)
        return replace(joined, elevations=bank.elevations)

    @classmethod
    def join(cls, parts: list["Surfaces"]) -> "Surfaces":
        """All of them, in this order."""
        return cls.from_tensors(
            {name: torch.cat([p.tensors()[name] for p in parts]) for name in parts[0].tensors()}
        )

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Surfaces":
        """The inverse of `tensors`."""
        nested = {
            name: Patches(**{f.name: tensors[f"{name}.{f.name}"] for f in fields(Patches)})
            for name in ("nearest", "discs")
        }
        plain = {name: value for name, value in tensors.items() if "." not in name}
        return cls(**plain, **nested)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Patches):
                found |= {f"{field.name}.{f.name}": getattr(value, f.name) for f in fields(value)}
            else:
                found[field.name] = value
        return found

    def select(self, index: Tensor) -> "Surfaces":
        """The solids at an index (W,)."""
        return Surfaces.from_tensors({name: x[index] for name, x in self.tensors().items()})

    def to(self, device: torch.device) -> "Surfaces":
        """All of them on a device."""
        return Surfaces.from_tensors({name: x.to(device) for name, x in self.tensors().items()})

    def latents(self, points: Tensor, part_colours: Tensor) -> Tensor:
        """The exact latents (V, L, 16), with about unit deviation.

        A token tells of its point: where it is (3 channels), where the nearest place on the
        surface is (3), the normal (3) and the colour (3) there, the signed distance (1), and the
        way to that place (3), which says again, at another scale, what the others say.

        Args:
            points: (L, 3), 0..1.
            part_colours: (V, P, 3) RGB.
        """
        way = self.nearest.positions.float()
        own = points.expand_as(way)
        return torch.cat(
            [
                (own - 0.5) * 3.4,
                (own + way - 0.5) * 4.5,
                self.nearest.normals.float() * (1.7 / 127),
                (self.nearest.colours(part_colours) - 0.45) * 3.3,
                self.distances.float()[..., None] * 7 - 0.9,
                way * 7,
            ],
            dim=-1,
        )

    def camera(self) -> Tensor:
        """What the camera token says (V, 1, 1): the elevation, with about unit deviation."""
        return (torch.rad2deg(self.elevations) - 20)[:, None, None] / 2.9


def to_box(points: Tensor) -> Tensor:
    """The world's coordinates to the networks', 0..1."""
    return points / SIDE + 0.5


def to_world(points: Tensor) -> Tensor:
    """The inverse of `to_box`."""
    return (points - 0.5) * SIDE


def _split(bank: Bank, at_once: int) -> list[Solid]:
    def pieces() -> Iterator[Solid]:
        for number in range(len(SHAPES)):
            solids = bank.solids(number)
            for start in range(0, len(solids.yaw), at_once):
                yield solids.part(slice(start, start + at_once))

    return list(pieces())


@torch.no_grad()
def _measure(
    solid: Solid, points: Tensor, offsets: Tensor, plan: SurfacePlan, generator: torch.Generator
) -> Surfaces:
    views, device = len(solid.yaw), points.device
    places = points.expand(views, -1, -1)
    distances = solid.distance(to_world(places)) / SIDE
    surface, area = spread(solid, plan.surface + plan.anchors, generator)
    drawn = to_box(surface[:, plan.surface :])
    jitter = torch.rand(drawn.shape, generator=generator, device=device)
    anchors = (((drawn * plan.cells).floor() + jitter) / plan.cells).half()
    gaussians = (anchors.float()[:, :, None] + offsets).flatten(1, 2)
    discs = _patches(solid, gaussians)
    # Offsets of Gaussians are stored from their anchor, which is what the network is given.
    moved = discs.positions.float() + offsets.repeat(anchors.shape[1], 1)
    return Surfaces(
        distances=distances.clamp(-_REACH, _REACH).half(),
        nearest=_patches(solid, places, steps=8),
        surface=to_box(surface[:, : plan.surface]).half(),
        anchors=anchors,
        discs=replace(discs, positions=moved.half()),
        sizes=_OVERLAP * (area / _GAUSSIANS).sqrt() / SIDE,
        elevations=torch.zeros(views, device=device),
    )


def _patches(solid: Solid, places: Tensor, steps: int = 3) -> Patches:
    """The places on the surface nearest to places (V, N, 3) in 0..1."""
    world = project(solid, to_world(places), steps)
    normals = solid.normals(world)
    shades = Light.canonical(len(world), world.device).shade(normals)
    return Patches(
        positions=(to_box(world) - places).half(),
        normals=(normals * 127).round().to(torch.int8),
        parts=solid.parts(world).argmin(-1).to(torch.uint8),
        shades=(shades / SHADE_UNIT).round().clamp(0, 255).to(torch.uint8),
    )


def project(solid: Solid, points: Tensor, steps: int) -> Tensor:
    """Moves the world's points (V, N, 3) to the surface, along the gradient of the distance."""
    for _ in range(steps):
        points = points - solid.distance(points)[..., None] * solid.normals(points)
    return points


def spread(solid: Solid, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spreads points evenly over surfaces.

    Returns:
        Points (V, count, 3) in random order and areas (V,), in the world's units.
    """
    views, device = len(solid.yaw), generator.device
    tried = 48 * count
    points = (torch.rand(views, tried, 3, generator=generator, device=device) - 0.5) * SIDE
    near = solid.distance(points).abs() < _SHELL
    area = near.float().mean(1) * SIDE**3 / (2 * _SHELL)
    # Where fewer are near than are wanted, some are taken again.
    order = near.float().argsort(dim=1, descending=True, stable=True)
    wanted = torch.arange(count, device=device) % near.sum(1, keepdim=True).clamp_min(1)
    chosen = points.gather(1, order.gather(1, wanted)[..., None].expand(-1, -1, 3))
    return project(solid, chosen, 3), area


def disc_axis(normals: Tensor) -> Tensor:
    """The axis (..., 3) of a disc: the normal, or its opposite where that points far down.

    A rotation from the z axis to a direction has no continuous choice near the opposite of z.
    """
    unit = functional.normalize(normals.float(), dim=-1)
    return torch.where(unit[..., 2:] < -0.5, -unit, unit)
