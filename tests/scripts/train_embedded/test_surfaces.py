"""What the small TripoSplat learns from is exact."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from protocol.gaussians import GaussianCloud
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.pictures import draw_colours
from scripts.train_embedded.prompts import held_out_pairs
from scripts.train_embedded.shading import Light
from scripts.train_embedded.splat_decoder import octree_loss
from scripts.train_embedded.surfaces import (
    SIDE,
    SurfacePlan,
    Surfaces,
    disc_axis,
    spread,
)
from scripts.train_embedded.views import exact_views, views_psnr
from scripts.train_embedded.world import REACH, Solid, average_solid

NAMES = [shape.name for shape in SHAPES]
PLAN = SurfacePlan(surface=512, anchors=64, cells=32)
OFFSETS = torch.tensor([[0.01, 0.0, 0.0], [-0.01, 0.01, 0.02]])
POINTS = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
RED = torch.tensor([[[0.8, 0.1, 0.1]] * 4])


def average(name: str) -> Solid:
    return average_solid(SHAPES[NAMES.index(name)], torch.zeros(1))


def bank_of(name: str) -> Bank:
    empty = torch.zeros(1, 0)
    return Bank(
        objects=torch.tensor([NAMES.index(name)], dtype=torch.uint8),
        variations=torch.zeros(1, 4),
        yaws=torch.zeros(1),
        elevations=torch.tensor([math.radians(22.9)]),
        **dict.fromkeys(
            ("normals", "parts", "boxes", "points", "distances", "point_parts", "shades"), empty
        ),
    )


@pytest.fixture(scope="module")
def ball() -> Surfaces:
    return Surfaces.measure(bank_of("sphere"), POINTS, OFFSETS, PLAN, seed=1)


def test_the_latent_of_a_ball_says_where_its_surface_is(ball: Surfaces) -> None:
    latents = ball.latents(POINTS, RED)
    assert latents.shape == (1, 40, 16)
    radius = REACH / SIDE
    outward = functional.normalize(POINTS - 0.5, dim=-1)
    nearest, normal = latents[0, :, 3:6] / 4.5, latents[0, :, 6:9] / 1.7
    torch.testing.assert_close(nearest, outward * radius, atol=2e-3, rtol=0)
    torch.testing.assert_close(normal, outward, atol=0.02, rtol=0)
    depth = (latents[0, :, 12] + 0.9) / 7
    expected = ((POINTS - 0.5).norm(dim=-1) - radius).clamp(-0.25, 0.25)
    torch.testing.assert_close(depth, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(ball.camera(), torch.ones(1, 1, 1), atol=1e-3, rtol=0)


def test_gaussians_of_an_anchor_belong_on_the_surface(ball: Surfaces) -> None:
    places = ball.anchors.float().repeat_interleave(2, 1) + ball.discs.positions.float()
    radius = (places - 0.5).norm(dim=-1)
    torch.testing.assert_close(radius, torch.full_like(radius, REACH / SIDE), atol=2e-3, rtol=0)


def test_points_are_spread_evenly_and_the_area_is_right() -> None:
    points, area = spread(average("sphere"), 2000, torch.Generator().manual_seed(3))
    assert float(area[0]) == pytest.approx(4 * math.pi * REACH**2, rel=0.05)
    # Archimedes: zones of one height have one area.
    shares = torch.histc(points[0, :, 2] / REACH, 4, -1, 1) / 2000
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.04, rtol=0)


def test_a_disc_axis_is_the_normal_or_its_opposite_and_never_points_far_down() -> None:
    normals = torch.randn(100, 3, generator=torch.Generator().manual_seed(4))
    axes = disc_axis(normals)
    along = (axes * functional.normalize(normals, dim=-1)).sum(-1)
    torch.testing.assert_close(along.abs(), torch.ones(100))
    assert axes[:, 2].min() >= -0.5


class Knowing(nn.Module):
    """An octree network that has seen the points."""

    def __init__(self, surface: Tensor, levels: int, sharpness: float) -> None:
        super().__init__()
        self.config = type("Config", (), {"levels": levels})
        self.surface, self.sharpness = surface.float(), sharpness

    def forward(self, centres: Tensor, resolution: Tensor, latents: Tensor) -> Tensor:
        side = resolution[:, None, None]
        cells = (self.surface * side).long()
        children = ((cells % 2) * torch.tensor([1, 2, 4])).sum(-1)
        inside = ((centres * side / 2).long()[:, :, None] == cells[:, None] // 2).all(-1).float()
        shares = inside @ functional.one_hot(children, 8).float()
        return self.sharpness * (shares / shares.sum(-1, keepdim=True)).clamp_min(1e-30).log()


def test_the_octree_loss_is_zero_for_the_true_shares_alone(ball: Surfaces) -> None:
    losses = [
        float(
            octree_loss(
                Knowing(ball.surface, 4, sharpness),  # type: ignore[arg-type]
                ball.surface,
                torch.zeros(1, 1, 16),
                torch.Generator().manual_seed(seed),
            )
        )
        for sharpness in (1.0, 0.5)
        for seed in range(4)
    ]
    assert max(losses[:4]) < 1e-5
    # The eight octants of a ball have equal shares at every sharpness.
    assert max(losses[4:]) > 0.01


def cloud_of(ball: Surfaces, colour: float) -> GaussianCloud:
    """Isotropic Gaussians on the surface of a ball in the canonical light, framed as clouds are."""
    outward = functional.normalize(ball.surface.float() - 0.5, dim=-1)
    shade = Light.canonical(1, "cpu").shade(outward)[0, :, None].expand(-1, 3)
    count = len(shade)
    return GaussianCloud(
        positions=(0.78 * outward[0]).roll(-1, 1).numpy(),
        log_scales=np.full((count, 3), math.log(0.03), np.float32),
        rotations=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        opacity_logits=np.full(count, 4.0, np.float32),
        colors_dc=(((colour * shade).clamp(0, 1) - 0.5) / 0.2821).numpy(),
    )


def test_views_of_the_right_cloud_come_nearer_to_the_solid_than_of_a_wrong_one(
    ball: Surfaces,
) -> None:
    white = torch.full((4, 3), 0.95)
    ball_views, table_views = (exact_views(average(n), white) for n in ("sphere", "table"))
    right, dark = (views_psnr(cloud_of(ball, c), ball_views) for c in (0.95, 0.3))
    table = views_psnr(cloud_of(ball, 0.95), table_views)
    assert right > 20
    assert right > max(dark, table) + 4


def test_no_held_out_pair_is_ever_drawn() -> None:
    objects = torch.arange(len(SHAPES)).repeat(60)
    names = draw_colours(objects, torch.Generator().manual_seed(5))
    pairs = set(zip(names.tolist(), objects.tolist(), strict=True))
    assert len(pairs) > 100
    assert not pairs & held_out_pairs()
