"""The guidance of DreamGaussian in the preset `embedded`: a small denoiser of views.

It sees a solid in one picture, as imperfect as the pipeline's, and learns to take the noise off the
exact views of its other sides, in the light that all 3D colours are painted in.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from generation.lift.dreamgaussian.denoiser import (
    DenoiserConfig,
    DenoiserNetwork,
    add_noise,
    questions_of,
)
from scripts.train_embedded import export
from scripts.train_embedded.evaluate import spare_cores
from scripts.train_embedded.loop import Plan, Training
from scripts.train_embedded.palette import nearest
from scripts.train_embedded.pictures import allowed_colours, draw_colours, wear
from scripts.train_embedded.shading import (
    Light,
    draw_backgrounds,
    halve,
    jitter_colours,
    over,
    paint_pixels,
    part_colours,
)
from scripts.train_embedded.sides import MARGIN, Sides, SidesPlan
from scripts.train_embedded.train_triposr import FOREGROUND_RATIO
from scripts.train_embedded.world import paint_table

PICTURE = 64
"""Pixels per side of the pictures; the pipeline's are twice as fine, and shrunk for the network."""

_TRAINING = Plan(steps=20_000, batch=12, rate=1.5e-3, minutes=45.0, average=0.999)

_FREE_COLOURS = 0.5
"""Share of the solids in any colour, not a named one, so that the network copies what it sees."""

_BLIND = 0.1
"""Share of the views whose picture the network does not see, for guidance."""

_ELEVATION_WEIGHT = 0.02
_BETA = 0.1
"""Errors are squared below it, and not above: edges that it cannot know stay sharp."""


@dataclass(frozen=True)
class GuidancePlan:
    """How the denoiser is trained.

    Attributes:
        config: Its shape.
        sides: What is drawn of the world.
        shown: Sides of every picture in a batch.
        training: How long and how fast; the batch is of pictures.
        mixed: Compute in bfloat16.
    """

    config: DenoiserConfig = field(default_factory=DenoiserConfig)
    sides: SidesPlan = field(default_factory=SidesPlan)
    shown: int = 3
    training: Plan = _TRAINING
    mixed: bool = True


@dataclass(frozen=True)
class Lesson:
    """One batch: B known views, and T other sides of each.

    Attributes:
        known: (B, 4, s, s) RGB times coverage, and coverage, in 0..1.
        elevations: (B,) radians, of the known views.
        views: (B, T, 4, s, s).
        angles: (B, T, 2) azimuth, and elevation above the horizon, in radians.
    """

    known: Tensor
    elevations: Tensor
    views: Tensor
    angles: Tensor

    @classmethod
    def draw(
        cls, sides: Sides, plan: GuidancePlan, paints: Tensor, generator: torch.Generator
    ) -> "Lesson":
        """Draws solids, sides, colours, lights and what is wrong with the pictures."""
        device, count = generator.device, plan.training.batch
        index = torch.randint(len(sides), (count,), generator=generator, device=device)
        order = torch.rand(count, sides.angles.shape[1], generator=generator, device=device)
        shown = order.argsort(dim=1)[:, : plan.shown]
        objects, at = sides.objects[index], (index[:, None], shown)
        main = draw_main_colours(objects, generator)
        colours = part_colours(paints, objects.long(), main)
        each = colours.repeat_interleave(plan.shown, dim=0)
        light = Light.canonical(len(each), device)
        normals, parts = sides.side_normals[at].flatten(0, 1), sides.side_parts[at].flatten(0, 1)
        views = halve(paint_pixels(normals, parts, each, light))
        rgba = halve(
            paint_pixels(
                sides.normals[index], sides.parts[index], colours, Light.draw(count, generator)
            )
        )
        backgrounds = draw_backgrounds(main, generator)
        known = cut_out(rgba, backgrounds, sides.boxes[index], plan.config.size, generator)
        views = views.view(count, -1, *views.shape[1:])
        return cls(known, sides.elevations[index], views, sides.angles[at])


def draw_main_colours(objects: Tensor, generator: torch.Generator) -> Tensor:
    """RGB (V, 3) for objects (V,), none nearest to a name that is held out for the object."""
    named = jitter_colours(draw_colours(objects, generator), generator)
    uniform = torch.rand(len(objects), 4, generator=generator, device=generator.device)
    free = 0.03 + 0.92 * uniform[:, :3]
    allowed = (allowed_colours(generator.device)[objects.long()] == nearest(free)[:, None]).any(1)
    return torch.where(((uniform[:, 3] < _FREE_COLOURS) & allowed)[:, None], free, named)


def cut_out(
    rgba: Tensor, backgrounds: Tensor, boxes: Tensor, size: int, generator: torch.Generator
) -> Tensor:
    """Known views as the pipeline cuts them out of imperfect pictures, and frames them.

    Args:
        rgba: (V, 4, S, S) exact, RGB times coverage, and coverage.
        backgrounds: (V, 3) plain colours behind.
        boxes: (V, 4) left, top, right, bottom of the objects in shares of the side.
        size: Pixels per side of the result.
        generator: Draws what is wrong.

    Returns:
        (V, 4, size, size) RGB times coverage, and coverage.
    """
    worn = wear(torch.cat([over(rgba, backgrounds), rgba[:, 3:]], dim=1), generator, blur=0.7)
    draw = torch.rand(len(rgba), 6, generator=generator, device=rgba.device)
    hardness, offset = 1 + 2 * draw[:, 0], 0.4 * (draw[:, 1] - 0.5)
    alpha = (worn[:, 3] - 0.5) * hardness[:, None, None] + 0.5 + offset[:, None, None]
    pixels = torch.cat([worn[:, :3], alpha[:, None]], dim=1).clamp(0, 1)
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)
    margin = MARGIN * (3.6 * draw[:, 2:] - 0.8)
    low, high = boxes[:, :2] - margin[:, :2], boxes[:, 2:] + margin[:, 2:]
    middle, side = (low + high) / 2, (high - low).amax(-1) / FOREGROUND_RATIO
    line = (torch.arange(size, device=rgba.device) + 0.5) / size - 0.5
    x, y = (middle[:, axis, None] + side[:, None] * line for axis in (0, 1))
    grid = torch.stack([x[:, None].expand(-1, size, -1), y[..., None].expand(-1, -1, size)], dim=-1)
    framed = functional.grid_sample(pixels, grid * 2 - 1, align_corners=False)
    inside = ((x > low[:, :1]) & (x < high[:, :1]))[:, None, None]
    inside = inside & ((y > low[:, 1:]) & (y < high[:, 1:]))[:, None, :, None]
    return framed * inside


def losses(
    network: DenoiserNetwork, lesson: Lesson, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Errors of views without their noise, and of the known view's elevation."""
    known, views = lesson.known, lesson.views.flatten(0, 1)
    shown = lesson.views.shape[1]
    uniform = torch.rand(2, len(views), generator=generator, device=views.device)
    # More often much noise than little, which is easily taken off.
    times = uniform[0].sqrt()
    noise = torch.randn(views.shape, generator=generator, device=views.device)
    seen = network.look(known)
    code, tokens = (
        x.repeat_interleave(shown, dim=0) * (uniform[1] >= _BLIND).view(-1, *[1] * (x.dim() - 1))
        for x in (seen.code, seen.tokens)
    )
    azimuth, elevation = lesson.angles.unbind(-1)
    above = (elevation - lesson.elevations[:, None]).flatten()
    questions = questions_of(azimuth.flatten(), above, times)
    found = network(add_noise(views, noise, times), code, tokens, questions)
    error = functional.smooth_l1_loss(found.float(), views, beta=_BETA)
    placement = network.config.placement
    wanted = (lesson.elevations.rad2deg() - placement.elevation) / placement.spread
    tilt = functional.mse_loss(seen.elevation.float(), wanted)
    return {"loss": error + _ELEVATION_WEIGHT * tilt, "views": error, "elevation": tilt}


def train(plan: GuidancePlan, sides: Sides, state: Path, row: int = 0) -> DenoiserNetwork:
    """Trains the denoiser; a run that was broken off goes on where it was last saved."""
    device = sides.objects.device
    torch.manual_seed(plan.training.seed)
    paints = paint_table(device)
    network = DenoiserNetwork(plan.config).to(device)
    training = Training("guidance", network, plan.training, state, row)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        lesson = Lesson.draw(sides, plan, paints, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.mixed):
            return losses(network, lesson, generator)

    trained = training.run(step)
    assert isinstance(trained, DenoiserNetwork)
    return trained


def make(plan: GuidancePlan, state: Path, out: Path, device: str, jobs: int) -> None:
    """Draws the sides, unless an earlier run did, trains and exports.

    Args:
        plan: See there.
        state: Folder of sides, checkpoint and losses.
        out: Folder of the networks of the preset.
        device: Where it trains.
        jobs: Processes that draw.
    """
    file = state / "sides.pt"
    if not file.is_file():
        Sides.draw(plan.sides, plan.config.placement, 2 * PICTURE, jobs).save(file)
    sides = Sides.load(file, torch.device(device))
    export.write_guidance(train(plan, sides, state), out)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.train_guidance", description=__doc__
    )
    plan = GuidancePlan()
    parser.add_argument("--out", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded/guidance"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--solids", type=int, default=plan.sides.solids, help="of every object")
    parser.add_argument("--sides", type=int, default=plan.sides.sides, help="of every solid")
    parser.add_argument("--steps", type=int, default=plan.training.steps)
    parser.add_argument("--batch", type=int, default=plan.training.batch, help="of pictures")
    parser.add_argument(
        "--minutes", type=float, default=plan.training.minutes, help="wall-clock limit"
    )
    parser.add_argument("--jobs", type=int, default=spare_cores(), help="processes that draw")
    parser.add_argument(
        "--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of a step"
    )
    options = parser.parse_args()
    training = replace(
        plan.training, steps=options.steps, batch=options.batch, minutes=options.minutes
    )
    plan = replace(
        plan,
        sides=replace(plan.sides, solids=options.solids, sides=options.sides),
        training=training,
        mixed=options.precision == "bfloat16",
    )
    make(plan, options.state, options.out, options.device, options.jobs)


if __name__ == "__main__":
    main()
