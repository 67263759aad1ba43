"""Signed distance primitives for batches of shapes (formulas after Inigo Quilez' catalogue).

Points are (V, N, 3): N points for each of V shapes. Sizes and centres are numbers or (V, 1)
tensors, so that every shape of a batch can have its own. Distances (V, N) are negative inside;
some are lower bounds outside, which sphere tracing and occupancy allow.
"""

from functools import reduce
from typing import TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = Tensor | float
Centre: TypeAlias = tuple[Scalar, Scalar, Scalar]

ORIGIN: Centre = (0.0, 0.0, 0.0)


def local(p: Tensor, centre: Centre) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates x, y, z, each (V, N), relative to a centre."""
    x, y, z = p.unbind(-1)
    return x - centre[0], y - centre[1], z - centre[2]


def sphere(p: Tensor, centre: Centre, radius: Scalar) -> Tensor:
    """A ball."""
    x, y, z = local(p, centre)
    return (x * x + y * y + z * z).sqrt() - radius


def ellipsoid(p: Tensor, centre: Centre, radius: Scalar, height: Scalar) -> Tensor:
    """A ball of `radius` in x and y and of half-height `height` in z; a close bound."""
    x, y, z = local(p, centre)
    flat = x * x + y * y
    k0 = (flat / radius**2 + z * z / height**2).sqrt()
    k1 = (flat / radius**4 + z * z / height**4).sqrt()
    return k0 * (k0 - 1) / k1.clamp_min(1e-6)


def box(p: Tensor, centre: Centre, half: Centre, rounding: Scalar = 0.0) -> Tensor:
    """A box with rounded edges; `half` is measured to its faces."""
    x, y, z = (c.abs() - (h - rounding) for c, h in zip(local(p, centre), half, strict=True))
    outside = (x.clamp_min(0) ** 2 + y.clamp_min(0) ** 2 + z.clamp_min(0) ** 2).sqrt()
    return outside + torch.maximum(x, torch.maximum(y, z)).clamp_max(0) - rounding


def cylinder(
    p: Tensor, centre: Centre, radius: Scalar, half: Scalar, *, axis: int = 2, rounding: float = 0.0
) -> Tensor:
    """A cylinder along an axis (0 x, 1 y, 2 z), `half` its half-length."""
    coordinates = list(local(p, centre))
    along = coordinates.pop(axis).abs() - (half - rounding)
    a, b = coordinates
    across = (a * a + b * b).sqrt() - (radius - rounding)
    outside = (along.clamp_min(0) ** 2 + across.clamp_min(0) ** 2).sqrt()
    return outside + torch.maximum(along, across).clamp_max(0) - rounding


def cone(p: Tensor, base: Centre, radius: Scalar, height: Scalar, tip: Scalar = 0.0) -> Tensor:
    """A cone standing on `base`, narrowing to radius `tip`; a bound outside its edges."""
    x, y, z = local(p, base)
    slope = (radius - tip) / height
    length = (1 + slope * slope) ** 0.5
    side = ((x * x + y * y).sqrt() - (radius - slope * z)) / length
    return torch.maximum(side, torch.maximum(-z, z - height))


def pyramid(p: Tensor, base: Centre, half: Scalar, height: Scalar) -> Tensor:
    """A pyramid with a square foot of side 2 * half; a bound outside its edges."""
    x, y, z = local(p, base)
    slope = half / height
    length = (1 + slope * slope) ** 0.5
    side = (torch.maximum(x.abs(), y.abs()) - (half - slope * z)) / length
    return torch.maximum(side, -z)


def gable(p: Tensor, base: Centre, half_x: Scalar, half_y: Scalar, height: Scalar) -> Tensor:
    """A prism roof with its ridge along x; a bound outside its edges."""
    x, y, z = local(p, base)
    slope = half_y / height
    length = (1 + slope * slope) ** 0.5
    side = (y.abs() - (half_y - slope * z)) / length
    return torch.maximum(torch.maximum(side, -z), x.abs() - half_x)


def torus(p: Tensor, centre: Centre, ring: Scalar, tube: Scalar, *, axis: int) -> Tensor:
    """A torus around an axis: `ring` is the circle's radius, `tube` that of its section."""
    coordinates = list(local(p, centre))
    along = coordinates.pop(axis)
    a, b = coordinates
    across = (a * a + b * b).sqrt() - ring
    return (across * across + along * along).sqrt() - tube


def capsule(p: Tensor, centre: Centre, half: Scalar, radius: Scalar) -> Tensor:
    """A vertical capsule; `half` is half the distance between the centres of its caps."""
    x, y, z = local(p, centre)
    along = (z.abs() - half).clamp_min(0)
    return (x * x + y * y + along * along).sqrt() - radius


def union(*distances: Tensor) -> Tensor:
    """What is in any of the shapes."""
    return reduce(torch.minimum, distances)


def without(shape: Tensor, hole: Tensor) -> Tensor:
    """What is in the shape and not in the hole."""
    return torch.maximum(shape, -hole)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """What is in both shapes."""
    return torch.maximum(a, b)
