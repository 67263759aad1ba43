"""Sides of solids fit the picture that defines their frame, and the denoiser learns from them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from generation.lift.dreamgaussian.denoiser import DenoiserConfig, ViewDenoiser
from generation.weights.store import EMBEDDED
from scripts.train_embedded import train_guidance
from scripts.train_embedded.export import DREAMGAUSSIAN
from scripts.train_embedded.loop import Plan
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import nearest
from scripts.train_embedded.pictures import allowed_colours
from scripts.train_embedded.shading import Light, halve, paint_pixels, part_colours
from scripts.train_embedded.sides import (
    MARGIN,
    Sides,
    SidesPlan,
    frame_of_picture,
    outward,
    trace_side,
)
from scripts.train_embedded.train_triposr import FOREGROUND_RATIO
from scripts.train_embedded.world import (
    BACKGROUND,
    CAMERA_DISTANCE,
    draw_solids,
    paint_table,
    trace,
    trace_rays,
)

CPU = torch.device("cpu")
CONFIG = DenoiserConfig(size=16, widths=(4, 8, 8), code=8, heads=2)
PLAN = train_guidance.GuidancePlan(
    config=CONFIG,
    sides=SidesPlan(solids=1, sides=2, size=16),
    shown=2,
    training=Plan(steps=4, batch=3, rate=1e-3),
    mixed=False,
)


@pytest.fixture(scope="module")
def sides() -> Sides:
    return Sides.draw(PLAN.sides, CONFIG.placement, 32, jobs=1)


def crop(pictures: Tensor, boxes: Tensor, size: int) -> Tensor:
    low, high = boxes[:, :2], boxes[:, 2:]
    side = ((high - low).amax(-1, keepdim=True) + 2 * MARGIN) / FOREGROUND_RATIO
    line = (torch.arange(size) + 0.5) / size - 0.5
    x, y = ((low + high)[:, axis, None] / 2 + side * line for axis in (0, 1))
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)], dim=-1)
    return functional.grid_sample(pictures, grid * 2 - 1, align_corners=False)


@pytest.mark.parametrize("number", [8, 13])
def test_the_side_that_the_picture_shows_is_the_framed_picture(number: int) -> None:
    generator = torch.Generator().manual_seed(5)
    solids, elevation = draw_solids(SHAPES[number], 1, generator)
    _, parts = trace(solids, elevation, 128)
    mask = (parts != BACKGROUND)[:, None].float()
    rows, columns = mask[0, 0].any(1).nonzero()[:, 0], mask[0, 0].any(0).nonzero()[:, 0]
    edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    boxes = torch.stack(edges)[None].float() / 128
    placement = CONFIG.placement
    origin, unit = frame_of_picture(elevation, boxes, placement)
    away = CAMERA_DISTANCE * outward(torch.zeros(1), elevation) - origin
    angles = torch.stack([torch.atan2(away[:, 1], away[:, 0]), away[:, 2] / away.norm()], dim=-1)
    angles[:, 1] = angles[:, 1].asin()
    _, side = trace_side(solids, origin[0], unit[0], angles, placement, 96)
    found, wanted = side[0] != BACKGROUND, crop(mask, boxes, 96)[0, 0] > 0.5
    assert float((found & wanted).sum() / (found | wanted).sum()) > 0.95


def test_rays_that_are_done_find_what_all_rays_find() -> None:
    solids, _ = draw_solids(SHAPES[12], 1, torch.Generator().manual_seed(2))
    placement, zero = CONFIG.placement, torch.zeros(3)
    angles = torch.tensor([[2.0, 0.4]])
    normals, parts = trace_side(solids, zero, torch.tensor(1.0), angles, placement, 24)
    eye = placement.distance * outward(*angles.T)
    right, up = torch.tensor([-angles[0, 0].sin(), angles[0, 0].cos(), 0.0]), torch.zeros(3)
    up = torch.linalg.cross(right, -eye[0] / placement.distance)
    line = ((torch.arange(24) + 0.5) / 12 - 1) * placement.half_view / placement.distance
    v, u = torch.meshgrid(-line, line, indexing="ij")
    rays = u.flatten()[:, None] * right + v.flatten()[:, None] * up - eye / placement.distance
    rays = functional.normalize(rays, dim=-1)
    expected = trace_rays(solids, eye[None], rays[None], placement.distance)
    assert float((parts.flatten() == expected[1][0]).float().mean()) > 0.98
    same = (parts.flatten() == expected[1][0]) & (parts.flatten() != BACKGROUND)
    error = (normals.view(-1, 3)[same].float() - expected[0][0][same].float()).abs()
    assert float(error.median()) <= 2


def test_no_colour_is_drawn_that_is_held_out() -> None:
    objects = torch.arange(16).repeat(60)
    main = train_guidance.draw_main_colours(objects, torch.Generator().manual_seed(0))
    allowed = allowed_colours(CPU)[objects]
    assert bool((allowed == nearest(main)[:, None]).any(1).all())
    # Not only the named ones.
    assert len(torch.unique((main * 8).long(), dim=0)) > 100


def test_a_batch_shows_each_solid_from_several_sides(sides: Sides) -> None:
    lesson = train_guidance.Lesson.draw(
        sides, PLAN, paint_table(), torch.Generator().manual_seed(0)
    )
    assert lesson.known.shape == (3, 4, 16, 16)
    assert lesson.views.shape == (3, 2, 4, 16, 16)
    assert lesson.angles.shape == (3, 2, 2)
    for pictures in (lesson.known, lesson.views):
        assert float(pictures.min()) >= 0
        assert float(pictures.max()) <= 1
    # Framed, it covers the middle and not the corners.
    assert float(lesson.known[:, 3, :1, :1].max()) == 0
    assert float(lesson.known[:, 3].amax((1, 2)).min()) > 0.5


def test_training_is_resumed_and_exported(sides: Sides, tmp_path: Path) -> None:
    state, out = tmp_path / "state", tmp_path / "out"
    sides.save(state / "sides.pt")
    half = replace(PLAN, training=replace(PLAN.training, steps=2))
    train_guidance.make(half, state, out, "cpu", 1)
    train_guidance.make(PLAN, state, out, "cpu", 1)
    checkpoint = torch.load(state / "guidance.pt", weights_only=True)
    assert checkpoint["step"] == 4
    guidance = ViewDenoiser.from_pretrained(
        out / DREAMGAUSSIAN, device=CPU, dtype=torch.float32, scale=1.0
    )
    assert guidance.config == CONFIG
    state_dict = guidance.network.state_dict()
    for name, value in state_dict.items():
        expected = checkpoint["averaged"][f"module.{name}"]
        torch.testing.assert_close(value, expected, atol=1e-3, rtol=1e-3)


def test_the_shipped_denoiser_knows_sides_that_it_has_not_seen() -> None:
    guidance = ViewDenoiser.from_pretrained(
        EMBEDDED / DREAMGAUSSIAN, device=CPU, dtype=torch.float32, scale=1.0
    )
    config = guidance.config
    plan = SidesPlan(solids=1, sides=1, size=config.size, seed=99)
    drawn = Sides.draw(plan, config.placement, 2 * config.size, jobs=1)
    colours = part_colours(paint_table(), drawn.objects.long(), torch.tensor([[0.8, 0.2, 0.1]]))
    light = Light.canonical(len(drawn), CPU)
    rgba = halve(paint_pixels(drawn.normals, drawn.parts, colours, light))
    generator = torch.Generator().manual_seed(1)
    known = train_guidance.cut_out(
        rgba, torch.full((16, 3), 0.8), drawn.boxes, config.size, generator
    )
    views = halve(paint_pixels(drawn.side_normals[:, 0], drawn.side_parts[:, 0], colours, light))
    azimuth, elevation = drawn.angles[:, 0].unbind(-1)
    seen = guidance.network.look(known)
    angles = (azimuth, elevation - drawn.elevations)
    found = guidance.denoise(seen, torch.zeros_like(views), *angles, 1.0, generator)
    error = (found - views).abs().mean((1, 2, 3))
    # The picture itself is no answer, nor is the answer for another side.
    assert float(error.mean()) < 0.7 * float((known - views).abs().mean())
    turned = guidance.denoise(seen, torch.zeros_like(views), -angles[0], angles[1], 1.0, generator)
    assert float(error.mean()) < float((turned - views).abs().mean())
    tilt = seen.elevation * config.placement.spread + config.placement.elevation
    assert float((tilt - drawn.elevations.rad2deg()).abs().median()) < 3
