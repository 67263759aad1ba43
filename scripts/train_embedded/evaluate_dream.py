"""Measures DreamGaussian with the embedded guidance, from nothing, beside the other back ends.

All lift the same exact cut-outs of objects in colours that no network was trained on, and what they
make is compared with the object. Seconds are of one CPU core, so that other work on the machine
does not count.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.lift.dreamgaussian import Dream, KnownView
from generation.lift.dreamgaussian.denoiser import ViewDenoiser
from generation.lift.dreamgaussian.guidance import Guidance
from generation.presets import preset
from generation.rendering import render_views
from generation.scoring.validity import check
from protocol.gaussians import GaussianCloud
from scripts.train_embedded import export, metrics
from scripts.train_embedded.evaluate import Networks, spare_cores
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, nearest
from scripts.train_embedded.prompts import evaluation_prompts
from scripts.train_embedded.true_views import Example, draw_example
from scripts.train_embedded.views import exact_views, views_psnr

WAYS = ("TripoSR", "TripoSplat", "DreamGaussian", "DreamGaussian, guidance none")

_CELL = 96
_SIDES = (0, 1, 2)
"""Of the four views that `render_views` draws."""
_DRAWN, _ROWS = 10, 8
"""Of the first examples, the grid shows as many as are of different kinds, but not more rows."""


@dataclass(frozen=True)
class Result:
    """What one way of lifting one cut-out gave.

    Attributes:
        way: One of `WAYS`.
        shape: Name of the object.
        named: Whether the named colour is the nearest to the mean of what is seen.
        iou: Intersection over union of the solids, framed as clouds are.
        psnr: Of the validator's 16 views, in decibels.
        seconds: Of one core, from the cut-out to the cloud.
        valid: Whether the cloud passes the validator's data checks.
    """

    way: str
    shape: str
    named: bool
    iou: float
    psnr: float
    seconds: float
    valid: bool


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        models: Folder of the networks.
        steps: Of DreamGaussian.
    """

    models: Path
    steps: int


def measure(
    way: str, example: Example, colour: str, exact: Tensor, cloud: GaussianCloud, seconds: float
) -> Result:
    """Compares a cloud with an example, whose exact views are known."""
    found = list(COLOURS)[int(nearest(metrics.mean_colour(cloud)))]
    return Result(
        way,
        example.solid.shape.name,
        found == colour,
        metrics.posed_iou(cloud, example.solid),
        views_psnr(cloud, exact),
        seconds,
        check(cloud).passed,
    )


def dream_of(
    example: Example, guidance: Guidance | None, *, steps: int, seed: int
) -> GaussianCloud:
    """What DreamGaussian makes of a cut-out, with the settings of the preset."""
    own = preset("embedded").dreamgaussian
    known = KnownView.framed(example.cutout, elevation=own.elevation, fov=own.fov)
    dream = Dream(
        known,
        guidance,
        steps=steps,
        sizes=own.sizes,
        count=own.count,
        seed=seed,
        device=torch.device("cpu"),
        most=own.max_gaussians,
    )
    dream.run(steps)
    return dream.result().to_cloud()


@cache
def _loaded(models: Path) -> tuple[Networks, ViewDenoiser]:
    networks, own = Networks(models), preset("embedded").dreamgaussian
    networks.triposplat  # noqa: B018  loading it is no part of the time
    guidance = ViewDenoiser.from_pretrained(
        models / export.DREAMGAUSSIAN,
        device=torch.device("cpu"),
        dtype=torch.float32,
        scale=own.scale,
    )
    return networks, guidance


def measure_example(task: tuple[int, Options]) -> tuple[list[Result], list[Image.Image]]:
    """Lifts one exact cut-out in all ways; also returns pictures for a row of the grid."""
    number, options = task
    networks, guidance = _loaded(options.models)
    torch.set_num_threads(1)
    *_, prompt = evaluation_prompts(number + 1)
    example = draw_example(number, prompt.shape, prompt.colour, networks.draw.settings.size)
    exact, cutout = exact_views(example.solid, example.colours[0]), Image.fromarray(example.cutout)
    dream = partial(dream_of, example, steps=options.steps, seed=number)
    makers: tuple[Callable[[], GaussianCloud], ...] = (
        partial(networks.lift, cutout),
        partial(networks.sample, cutout, number),
        partial(dream, guidance),
        partial(dream, None),
    )
    white = Image.new("RGBA", cutout.size, "white")
    results, pictures = [], [Image.alpha_composite(white, cutout).convert("RGB")]
    for way, make in zip(WAYS, makers, strict=True):
        started = time.process_time()
        cloud = make()
        seconds = time.process_time() - started
        colour = list(COLOURS)[prompt.colour]
        results.append(measure(way, example, colour, exact, cloud, seconds))
        if number < _DRAWN:
            views = render_views(cloud, size=2 * _CELL, backend="cpu")
            pictures += [Image.fromarray(views[side]) for side in _SIDES]
    return results, pictures


def table(results: Sequence[Result]) -> str:
    """Markdown: means over all objects, then the mean overlap for each kind."""
    lines = [
        "| made by | named colour right | solid IoU, mean | median | PSNR of 16 views | seconds of "
        "a core, median | longest | valid |",
        "|" + " --- |" * 8,
    ]
    for way in WAYS:
        own = [r for r in results if r.way == way]
        lines.append(
            f"| {way} | {statistics.fmean(r.named for r in own):.1%} "
            f"| {statistics.fmean(r.iou for r in own):.3f} "
            f"| {statistics.median(r.iou for r in own):.3f} "
            f"| {statistics.fmean(r.psnr for r in own):.2f} dB "
            f"| {statistics.median(r.seconds for r in own):.1f} "
            f"| {max(r.seconds for r in own):.1f} "
            f"| {statistics.fmean(r.valid for r in own):.0%} |"
        )
    lines += ["", "| solid IoU | " + " | ".join(WAYS) + " |", "|" + " --- |" * (1 + len(WAYS))]
    for shape in SHAPES:
        rows = [[r.iou for r in results if (r.shape, r.way) == (shape.name, w)] for w in WAYS]
        if all(rows):
            figures = " | ".join(f"{statistics.fmean(row):.2f}" for row in rows)
            lines.append(f"| {shape.name} | {figures} |")
    return "\n".join(lines)


def draw_grid(rows: Sequence[Sequence[Image.Image]], file: Path) -> None:
    """Writes rows of pictures as a small PNG."""
    sheet = Image.new("RGB", (_CELL * len(rows[0]), _CELL * len(rows)), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((_CELL, _CELL)), (x * _CELL, y * _CELL))
    sheet.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


def main() -> None:
    """Reads the command line, measures, prints a table, writes JSON and a picture grid."""
    own = preset("embedded").dreamgaussian
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.evaluate_dream", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--out", type=Path, default=Path("train-embedded/dream.json"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    parser.add_argument("--steps", type=int, default=own.steps)
    given = parser.parse_args()
    options = Options(given.models, given.steps)
    results: list[Result] = []
    rows: dict[str, list[Image.Image]] = {}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        tasks = [(number, options) for number in range(given.count)]
        for found, row in tqdm(pool.imap(measure_example, tasks), total=given.count):
            results += found
            if len(row) > 1:
                rows.setdefault(found[0].shape, row)
            given.out.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    print(table(results))
    # Without the way that has no guidance, which comes last.
    grid = [row[: -len(_SIDES)] for row in rows.values()]
    draw_grid(grid[:_ROWS], given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
