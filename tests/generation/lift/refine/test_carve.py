"""Carving moves what lies outside a silhouette to its edge, and nothing else."""

import math

import pytest
import torch
from torch import Tensor

from generation.lift.refine.carve import carve
from generation.lift.refine.pose import Lens, view_of

LENS = Lens(64, 90.0, (30.0, 35.0))
VIEW = view_of(torch.tensor([math.radians(25), math.log(3.0), 0.1, -0.05]))
SIDE = 128


def disc(radius: float) -> Tensor:
    """(128, 128) coverage of a disc around the middle, radius in shares of the side."""
    line = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    return (torch.hypot(line[:, None], line) < radius).float()


def places(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Where they appear, as shares of the side from the picture's middle (N, 2), and depths."""
    seen = positions @ VIEW[:3, :3].T + VIEW[:3, 3]
    pixels = seen[:, :2] / seen[:, 2:] * LENS.focal + torch.tensor(LENS.centre)
    return pixels / LENS.size - 0.5, seen[:, 2]


@pytest.fixture(scope="module")
def positions() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(500, 3, generator=generator) * 1.6 - 0.8


def test_everything_is_inside_afterwards_and_as_deep_as_before(positions: Tensor) -> None:
    after, moved = carve(positions, disc(0.2), LENS, VIEW)
    before, depth = places(positions)
    found, depth_after = places(after)
    # Half the diagonal of a pixel, since edges run between pixels.
    assert float(found.norm(dim=1).max()) < 0.2 + 0.75 / SIDE
    torch.testing.assert_close(depth_after, depth)
    inside = before.norm(dim=1) < 0.2 - 1 / SIDE
    assert 0 < int(inside.sum()) < len(positions)
    assert torch.equal(after[inside], positions[inside])
    assert not moved[inside].any()


def test_how_far_each_was_moved_is_returned(positions: Tensor) -> None:
    _, moved = carve(positions, disc(0.2), LENS, VIEW)
    before, _ = places(positions)
    # What lies outside the picture counts from the picture's border.
    seen = (before.abs() < 0.49).all(dim=1)
    wanted = (before.norm(dim=1) - 0.2).clamp_min(0)
    assert float((moved - wanted)[seen].abs().max()) < 1.5 / SIDE
