"""The sixteen objects: what they are made of, which parts take the named colour, how they stand.

Objects stand along z and face +x. `variation` (V, 4) in -1..1 moves the proportions of each by a
few per cent. Before use an object is centred on its bounding box and scaled, see `world.Solid`.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from scripts.train_embedded.sdf import (
    ORIGIN,
    Scalar,
    box,
    capsule,
    cone,
    cylinder,
    ellipsoid,
    gable,
    intersection,
    pyramid,
    sphere,
    torus,
    union,
    without,
)

VARIATIONS = 4
"""Numbers that vary one object's proportions."""


@dataclass(frozen=True)
class Paint:
    """Colour of a part: `main` times the named colour plus a fixed one (r, g, b in 0..1)."""

    main: float = 0.0
    fixed: tuple[float, float, float] = (0.0, 0.0, 0.0)


MAIN = Paint(main=1.0)
DEEP = Paint(main=0.84)
BARK = Paint(fixed=(0.40, 0.26, 0.15))
GLASS = Paint(fixed=(0.50, 0.58, 0.66))
RUBBER = Paint(fixed=(0.28, 0.28, 0.30))
CREAM = Paint(fixed=(0.84, 0.77, 0.64))
PALE = Paint(main=0.35, fixed=(0.42, 0.38, 0.31))
DOOR = Paint(fixed=(0.36, 0.27, 0.20))

Parts = list[tuple[Paint, Tensor]]


@dataclass(frozen=True)
class Shape:
    """One object.

    Attributes:
        name: Its name, one or two words.
        parts: Maps points (V, N, 3) and variation (V, 4) to paints and distances (V, N).
        yaw: Degrees it is turned about z in its usual pose; positive turns its face from +x to +y.
        synonyms: Other words that mean it.
    """

    name: str
    parts: Callable[[Tensor, Tensor], Parts]
    yaw: float
    synonyms: tuple[str, ...] = ()


def _vary(variation: Tensor, index: int, middle: float, share: float = 0.04) -> Tensor:
    """(V, 1): the middle, moved by up to a share of itself."""
    return middle * (1 + share * variation[:, index : index + 1])


def _cube(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, box(p, ORIGIN, (0.5, 0.5, 0.5), _vary(u, 0, 0.04, 0.5)))]


def _sphere(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, sphere(p, ORIGIN, 0.5))]


def _cylinder(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, cylinder(p, ORIGIN, _vary(u, 0, 0.40), 0.52, rounding=0.02))]


def _cone(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, cone(p, ORIGIN, _vary(u, 0, 0.50), 1.05))]


def _torus(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, torus(p, ORIGIN, 0.5, _vary(u, 0, 0.18), axis=0))]


def _pyramid(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, pyramid(p, ORIGIN, 0.55, _vary(u, 0, 0.90)))]


def _capsule(p: Tensor, u: Tensor) -> Parts:
    return [(MAIN, capsule(p, ORIGIN, _vary(u, 0, 0.36), 0.27))]


def _ring_stand(p: Tensor, u: Tensor) -> Parts:
    ring = _vary(u, 0, 0.34)
    foot = cylinder(p, (0, 0, 0.06), _vary(u, 1, 0.36), 0.06, rounding=0.02)
    post = cylinder(p, (0, 0, 0.28), 0.085, 0.26)
    return [(MAIN, union(foot, post, torus(p, (0, 0, 0.50 + ring), ring, 0.095, axis=0)))]


def _car(p: Tensor, u: Tensor) -> Parts:
    length, width = _vary(u, 0, 0.75, 0.05), _vary(u, 1, 0.36, 0.05)
    hood = box(p, (0, 0, 0.30), (length, width, 0.16), 0.07)
    cabin = box(p, (-0.08, 0, 0.55), (0.40, width - 0.04, 0.20), 0.08)
    side_windows = box(p, (-0.08, 0, 0.56), (0.26, width - 0.03, 0.08), 0.02)
    end_windows = box(p, (-0.08, 0, 0.56), (0.41, width - 0.14, 0.08), 0.02)
    wheels = union(
        *(
            cylinder(
                p, (front * 0.45, side * (width - 0.03), 0.16), 0.16, 0.07, axis=1, rounding=0.03
            )
            for front in (-1, 1)
            for side in (-1, 1)
        )
    )
    return [(MAIN, union(hood, cabin)), (GLASS, union(side_windows, end_windows)), (RUBBER, wheels)]


def _house(p: Tensor, u: Tensor) -> Parts:
    deep, wide = _vary(u, 0, 0.50), _vary(u, 1, 0.42)
    walls = box(p, (0, 0, 0.30), (deep, wide, 0.30))
    roof = gable(p, (0, 0, 0.60), deep + 0.06, wide + 0.08, _vary(u, 2, 0.42))
    attic = gable(p, (0, 0, 0.60), deep + 0.065, wide - 0.04, _vary(u, 2, 0.42) - 0.10)
    door = box(p, (deep, 0, 0.17), (0.02, 0.10, 0.17))
    windows = union(
        *(
            box(p, (side * 0.22, face * wide, 0.34), (0.09, 0.02, 0.08))
            for side in (-1, 1)
            for face in (-1, 1)
        ),
        *(box(p, (deep, side * 0.25, 0.36), (0.02, 0.07, 0.08)) for side in (-1, 1)),
    )
    return [
        (MAIN, union(walls, attic)),
        (DEEP, roof),
        (DOOR, door),
        (GLASS, windows),
    ]


def _tree(p: Tensor, u: Tensor) -> Parts:
    radius = _vary(u, 0, 0.34)
    trunk = cylinder(p, (0, 0, 0.26), _vary(u, 1, 0.10), 0.26)
    crown = union(
        sphere(p, (0, 0, 1.05), radius),
        sphere(p, (0.20, 0.10, 0.70), radius * 0.88),
        sphere(p, (-0.20, 0.16, 0.74), radius * 0.88),
        sphere(p, (0.0, -0.24, 0.72), radius * 0.92),
    )
    return [(MAIN, crown), (BARK, trunk)]


def _legs(p: Tensor, x: Scalar, y: Scalar, height: Scalar, thick: float) -> Tensor:
    half = height / 2
    return union(
        *(
            box(p, (sx * (x - thick), sy * (y - thick), half), (thick, thick, half))
            for sx in (-1, 1)
            for sy in (-1, 1)
        )
    )


def _table(p: Tensor, u: Tensor) -> Parts:
    x, y, height = _vary(u, 0, 0.46), _vary(u, 1, 0.70), _vary(u, 2, 0.55)
    top = box(p, (0, 0, height + 0.06), (x, y, 0.07), 0.02)
    return [(MAIN, union(top, _legs(p, x - 0.04, y - 0.04, height, 0.07)))]


def _chair(p: Tensor, u: Tensor) -> Parts:
    wide, height = _vary(u, 0, 0.34), _vary(u, 1, 0.46)
    seat = box(p, (0, 0, height + 0.05), (wide, wide, 0.06), 0.02)
    back = box(p, (0.065 - wide, 0, height + 0.40), (0.065, wide, 0.40), 0.02)
    return [(MAIN, union(seat, back, _legs(p, wide, wide, height, 0.065)))]


def _mug(p: Tensor, u: Tensor) -> Parts:
    radius, half = _vary(u, 0, 0.38), 0.44
    hole = cylinder(p, (0, 0, 0.12), radius - 0.09, half)
    cup = without(cylinder(p, ORIGIN, radius, half, rounding=0.02), hole)
    handle = without(torus(p, (0, radius, 0), 0.25, 0.07, axis=0), hole)
    return [(MAIN, union(cup, handle))]


def _mushroom(p: Tensor, u: Tensor) -> Parts:
    radius, height = _vary(u, 0, 0.58), _vary(u, 1, 0.46)
    middle = 0.46
    low = (0.0, 0.0, middle)
    cap = without(ellipsoid(p, low, radius, height), box(p, (0, 0, middle - 1), (2, 2, 1)))
    stem = cylinder(p, (0, 0, 0.25), _vary(u, 2, 0.17), 0.25, rounding=0.04)
    coat = ellipsoid(p, low, radius + 0.012, height + 0.012)
    dots = [
        intersection(sphere(p, (x * radius, y * radius, middle + z * height), 0.075), coat)
        for x, y, z in _DOTS
    ]
    return [(MAIN, cap), (PALE, stem), (CREAM, union(*dots))]


# Where the mushroom's dots sit on the unit sphere.
_DOTS = (
    (0.82, 0.30, 0.49),
    (0.44, -0.76, 0.49),
    (-0.15, 0.86, 0.49),
    (-0.67, -0.56, 0.49),
    (0.54, -0.07, 0.84),
    (-0.35, 0.35, 0.87),
)


def _rocket(p: Tensor, u: Tensor) -> Parts:
    radius, half = _vary(u, 0, 0.22), _vary(u, 1, 0.36)
    top = 0.20 + 2 * half
    body = cylinder(p, (0, 0, 0.20 + half), radius, half)
    nose = cone(p, (0, 0, top), radius, 0.40)
    jet = cone(p, (0, 0, 0.08), 0.19, 0.12, tip=0.12)
    plates = union(
        box(p, (0, 0, 0.4), (2, 0.035, 0.4)),
        box(p, (0, 0, 0.4), (0.035, 2, 0.4)),
    )
    blade = intersection(pyramid(p, ORIGIN, 0.52, 0.62), plates)
    window = cylinder(p, (radius - 0.03, 0, top - 0.16), 0.10, 0.05, axis=0)
    return [(MAIN, body), (DEEP, union(nose, blade, jet)), (GLASS, window)]


SHAPES: tuple[Shape, ...] = (
    Shape("cube", _cube, 32, ("box", "block")),
    Shape("sphere", _sphere, 0, ("ball", "orb")),
    Shape("cylinder", _cylinder, 0, ("drum",)),
    Shape("cone", _cone, 0),
    Shape("torus", _torus, 30, ("donut", "doughnut")),
    Shape("pyramid", _pyramid, 30),
    Shape("capsule", _capsule, 0, ("pill",)),
    Shape("ring stand", _ring_stand, 28),
    Shape("car", _car, 42, ("automobile",)),
    Shape("house", _house, 38, ("cottage", "hut")),
    Shape("tree", _tree, 0),
    Shape("table", _table, 30, ("desk",)),
    Shape("chair", _chair, 35, ("seat",)),
    Shape("mug", _mug, -18, ("cup",)),
    Shape("mushroom", _mushroom, 0, ("toadstool",)),
    Shape("rocket", _rocket, 20, ("spaceship",)),
)
