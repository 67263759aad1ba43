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
from generation.lift.dreamgaussian.guidance import Guidance, fov_of, scale_of
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

TRIPOSR, TRIPOSPLAT, GUIDED, ALONE = WAYS = (
    "TripoSR",
    "TripoSplat",
    "DreamGaussian",
    "DreamGaussian, guidance none",
)

_CELL = 96
_SIDES = (0, 1, 2)
"""Of the four views that `render_views` draws."""
_DRAWN, _ROWS = 10, 8
"""Of the first examples, the grid shows as many as are of different kinds, but not more rows."""


@dataclass(frozen=True)
class Result:
    """What one way of lifting one cut-out gave.

    Attributes:
        number: Of the example.
        way: One of `WAYS`.
        shape: Name of the object.
        named: Whether the named colour is the nearest to the mean of what is seen.
        iou: Intersection over union of the solids, framed as clouds are.
        psnr: Of the validator's 16 views, in decibels.
        seconds: Of one core, from the cut-out to the cloud.
        valid: Whether the cloud passes the validator's data checks.
    """

    number: int
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
        out: Where pictures go.
        steps: Of DreamGaussian.
        ways: Which of `WAYS`.
    """

    models: Path
    out: Path
    steps: int
    ways: tuple[str, ...] = WAYS


def measure(
    number: int,
    way: str,
    example: Example,
    colour: str,
    exact: Tensor,
    cloud: GaussianCloud,
    seconds: float,
) -> Result:
    """Compares a cloud with an example, whose exact views are known."""
    found = list(COLOURS)[int(nearest(metrics.mean_colour(cloud)))]
    return Result(
        number,
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
    """The cloud of DreamGaussian for a cut-out, with the settings of the preset."""
    own = preset("embedded").dreamgaussian
    known = KnownView.framed(example.cutout, elevation=own.elevation, fov=fov_of(own))
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
        scale=scale_of(own),
    )
    return networks, guidance


def measure_example(task: tuple[int, Options]) -> list[Result]:
    """Lifts one exact cut-out in the chosen ways; of the first ones, also writes pictures."""
    number, options = task
    networks, guidance = _loaded(options.models)
    torch.set_num_threads(1)
    *_, prompt = evaluation_prompts(number + 1)
    example = draw_example(number, prompt.shape, prompt.colour, networks.draw.settings.size)
    exact, cutout = exact_views(example.solid, example.colours[0]), Image.fromarray(example.cutout)
    dream = partial(dream_of, example, steps=options.steps, seed=number)
    makers: dict[str, Callable[[], GaussianCloud]] = {
        TRIPOSR: partial(networks.lift, cutout),
        TRIPOSPLAT: partial(networks.sample, cutout, number),
        GUIDED: partial(dream, guidance),
        ALONE: partial(dream, None),
    }
    results = []
    for way in options.ways:
        started = time.process_time()
        cloud = makers[way]()
        seconds = time.process_time() - started
        colour = list(COLOURS)[prompt.colour]
        results.append(measure(number, way, example, colour, exact, cloud, seconds))
        if number < _DRAWN and way != ALONE:
            views = render_views(cloud, size=2 * _CELL, backend="cpu")
            pictures = [Image.fromarray(views[side]) for side in _SIDES]
            strip(pictures).save(options.out / f"{number:02}-{way}.png")
    if number < _DRAWN:
        white = Image.new("RGBA", cutout.size, "white")
        shown = Image.alpha_composite(white, cutout).convert("RGB")
        strip([shown]).save(options.out / f"{number:02}.png")
    return results


def table(results: Sequence[Result]) -> str:
    """Markdown: means over all objects, then the mean overlap for each kind."""
    lines = [
        "| made by | named colour right | solid IoU, mean | median | PSNR of 16 views | seconds of "
        "a core, median | longest | valid |",
        "|" + " --- |" * 8,
    ]
    for way in WAYS:
        own = [r for r in results if r.way == way]
        if not own:
            continue
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


def read_results(file: Path) -> list[Result]:
    """What `write_results` wrote; nothing where there is no file."""
    if not file.is_file():
        return []
    return [Result(**fields) for fields in json.loads(file.read_text(encoding="utf-8"))]


def write_results(results: Sequence[Result], file: Path) -> None:
    """Writes JSON."""
    text = json.dumps([asdict(result) for result in results], indent=1)
    file.write_text(text + "\n", encoding="utf-8")


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, each a cell of the grid."""
    sheet = Image.new("RGB", (_CELL * len(pictures), _CELL), "white")
    for x, picture in enumerate(pictures):
        sheet.paste(picture.resize((_CELL, _CELL)), (x * _CELL, 0))
    return sheet


def draw_grid(results: Sequence[Result], out: Path) -> None:
    """Puts the pictures of the first example of every kind, if there are all, into one."""
    first: dict[str, int] = {}
    for result in sorted(results, key=lambda result: result.number):
        first.setdefault(result.shape, result.number)
    files = [
        [out / f"{n:02}.png", *(out / f"{n:02}-{w}.png" for w in WAYS[:-1])] for n in first.values()
    ]
    rows = [[Image.open(file) for file in row] for row in files if all(f.is_file() for f in row)]
    if not rows:
        return
    rows = rows[:_ROWS]
    sheet = Image.new("RGB", (sum(p.width for p in rows[0]), _CELL * len(rows)), "white")
    for y, row in enumerate(rows):
        x = 0
        for picture in row:
            sheet.paste(picture, (x, y * _CELL))
            x += picture.width
    sheet.quantize(128, dither=Image.Dither.NONE).save(out / "back-ends.png", optimize=True)


def main() -> None:
    """Reads the command line, measures, prints a table, writes JSON and a picture grid."""
    own = preset("embedded").dreamgaussian
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.evaluate_dream", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--out", type=Path, default=Path("train-embedded/dream"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    parser.add_argument("--steps", type=int, default=own.steps, help="of DreamGaussian")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=WAYS, help="others in --out are kept"
    )
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file, ways = given.out / "results.json", tuple(given.ways)
    results = [r for r in read_results(file) if r.way not in ways and r.number < given.count]
    options = Options(given.models, given.out, given.steps, ways)
    tasks = [(number, options) for number in range(given.count)]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for found in tqdm(pool.imap(measure_example, tasks), total=given.count):
            results += found
            write_results(results, file)
    print(table(results))
    draw_grid(results, given.out)


if __name__ == "__main__":
    main()
