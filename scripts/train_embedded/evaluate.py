"""Measures the networks of the preset `embedded` on pairs that training never saw.

Three questions: does a prompt come back in the named colour and shape; is the cut-out's mask
right; is the 3D right when the picture and its pose are exact.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.errors import GenerationError
from generation.lift.triposr import TripoSR
from generation.lift.triposr.splats import extract_cloud
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.pictures.framing import composite_on_grey, resize_foreground
from generation.presets import preset
from generation.scoring.validity import check
from protocol.gaussians import GaussianCloud
from scripts.train_embedded import export, metrics
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS, nearest
from scripts.train_embedded.prompts import Prompt, evaluation_prompts, held_out_pairs
from scripts.train_embedded.shading import (
    Light,
    draw_backgrounds,
    halve,
    jitter_colours,
    over,
    paint_pixels,
    part_colours,
)
from scripts.train_embedded.sheet import Row, draw_sheet
from scripts.train_embedded.text import T5_LENGTH
from scripts.train_embedded.world import Solid, draw_solids, paint_table, trace

FRAMES_PER_OBJECT = 4
STEPS = 8
FRAME_SEED = 4242


@dataclass(frozen=True)
class TextResult:
    """What one prompt gave.

    Attributes:
        prompt: The prompt.
        wanted, found: Names of the colour asked for and of the nearest to the splat's mean.
        shape: Name of the object asked for.
        shape_iou: Of the cloud's solid with the average true shape at the best yaw.
        mask_iou: Of the cut-out with the mask that the plain background gives away.
        problem: Why there is no valid cloud; empty if there is one.
    """

    prompt: str
    wanted: str
    found: str
    shape: str
    shape_iou: float
    mask_iou: float
    problem: str = ""


@dataclass(frozen=True)
class ImageResult:
    """What one exact picture gave: mask IoU, and 3D IoU with the exact and with our cut-out."""

    shape: str
    mask_iou: float
    exact_iou: float
    own_iou: float


class Networks:
    """The stages of the preset, loaded from a folder."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        settings = preset("embedded")
        update = {"max_sequence_length": T5_LENGTH, "steps": steps}
        drawing = settings.text_to_image.model_copy(update=update)
        cutting = settings.cutout.model_copy(update={"threads": 1})
        self.splats = settings.splats
        self.draw = Flux1.from_pretrained(folder / export.FLUX, drawing, "cpu")
        self.cut = BackgroundRemover(folder / export.BACKGROUND, cutting)
        self.triposr = TripoSR.from_pretrained(folder / export.TRIPOSR)

    def mask(self, image: Image.Image) -> Tensor:
        """The cut-out's alpha (H, W) in 0..1, before framing."""
        return tensor_of(self.cut.remove(image))[3]

    def lift(self, cutout: Image.Image, count: int | None = None) -> GaussianCloud:
        """A framed cut-out to a cloud of at most `count` Gaussians, the preset's if None."""
        return extract_cloud(self.triposr, self.scene_code(cutout), self.splats, count=count)

    def scene_code(self, cutout: Image.Image) -> Tensor:
        """A framed cut-out to a scene code."""
        return self.triposr.scene_codes(composite_on_grey(cutout))


def tensor_of(image: Image.Image) -> Tensor:
    """(C, H, W) float32 in 0..1."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def picture_of(image: Tensor) -> Image.Image:
    """The inverse of `tensor_of`."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def measure_prompt(networks: Networks, prompt: Prompt, seed: int) -> tuple[TextResult, Row]:
    """Takes a prompt through every stage."""
    row = Row(prompt.text, networks.draw(prompt.text, seed))
    wanted, shape = list(COLOURS)[prompt.colour], SHAPES[prompt.shape].name
    mask_iou = metrics.mask_iou(networks.mask(row.image), metrics.colour_key(tensor_of(row.image)))
    try:
        row.cutout = networks.cut(row.image)
        row.cloud = cloud = networks.lift(row.cutout)
    except GenerationError as error:
        return TextResult(prompt.text, wanted, "none", shape, 0.0, mask_iou, str(error)), row
    report = check(cloud)
    return TextResult(
        prompt.text,
        wanted,
        list(COLOURS)[int(nearest(metrics.mean_colour(cloud)))],
        shape,
        metrics.best_yaw_iou(cloud, prompt.shape),
        mask_iou,
        "" if report.passed else report.summary(),
    ), row


def measure_images(networks: Networks, number: int) -> list[ImageResult]:
    """Takes exact pictures of one object, in its held-out colours, to a mask and to 3D."""
    generator = torch.Generator().manual_seed(FRAME_SEED + number)
    solids, elevation = draw_solids(SHAPES[number], FRAMES_PER_OBJECT, generator)
    normals, parts = trace(solids, elevation, 2 * networks.draw.settings.size)
    held_out = sorted(colour for colour, shape in held_out_pairs() if shape == number)
    names = torch.tensor(held_out).repeat(FRAMES_PER_OBJECT)[:FRAMES_PER_OBJECT]
    main = jitter_colours(names, generator)
    colours = part_colours(paint_table(), torch.full_like(names, number), main)
    rgba = halve(paint_pixels(normals, parts, colours, Light.draw(len(names), generator)))
    images = over(rgba, draw_backgrounds(main, generator))
    results = []
    for view in range(FRAMES_PER_OBJECT):
        picture, alpha = picture_of(images[view]), rgba[view, 3]
        exact = picture_of(torch.cat([rgba[view, :3] / alpha.clamp_min(1e-3), alpha[None]]))
        ious = (
            _solid_iou(networks, cutout, solids.select(view))
            for cutout in (resize_foreground(exact), networks.cut(picture))
        )
        mask_iou = metrics.mask_iou(networks.mask(picture), alpha)
        results.append(ImageResult(SHAPES[number].name, mask_iou, *ious))
    return results


def _solid_iou(networks: Networks, cutout: Image.Image, solid: Solid) -> float:
    density = networks.triposr.density_grid(networks.scene_code(cutout), metrics.GRID)
    radius, threshold = networks.triposr.radius, networks.splats.threshold
    return metrics.occupancy_iou(density, threshold, solid, radius)


Share = tuple[list[tuple[TextResult, Row]], list[ImageResult]]


def _measure_object(task: tuple[int, list[tuple[int, Prompt]], Path, int]) -> Share:
    number, prompts, folder, steps = task
    torch.set_num_threads(1)
    networks = Networks(folder, steps)
    texts = [measure_prompt(networks, prompt, seed) for seed, prompt in prompts]
    return texts, measure_images(networks, number)


def evaluate(
    folder: Path, count: int, jobs: int, steps: int = STEPS
) -> tuple[list[TextResult], list[ImageResult], list[Row]]:
    """Measures `count` prompts and 4 exact pictures of every object, `jobs` objects at a time.

    Returns:
        Results, and the first row of every object for the picture grid.
    """
    prompts = list(enumerate(evaluation_prompts(count)))
    tasks = [
        (number, [item for item in prompts if item[1].shape == number], folder, steps)
        for number in range(len(SHAPES))
    ]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        shares = list(tqdm(pool.imap(_measure_object, tasks), total=len(tasks), desc="objects"))
    texts = [result for share, _ in shares for result, _ in share]
    rows = [row for share, _ in shares for _, row in share[:1]]
    return texts, [result for _, images in shares for result in images], rows


def summary(texts: Sequence[TextResult], images: Sequence[ImageResult]) -> dict[str, float]:
    """The figures that matter, shares and means in 0..1."""
    return {
        "prompts": len(texts),
        "named colour right": statistics.fmean(r.found == r.wanted for r in texts),
        "shape IoU at best yaw": statistics.fmean(r.shape_iou for r in texts),
        "valid assets": statistics.fmean(not r.problem for r in texts),
        "mask IoU on FLUX's pictures": statistics.fmean(r.mask_iou for r in texts),
        "mask IoU on exact pictures": statistics.fmean(r.mask_iou for r in images),
        "3D IoU, exact picture and mask": statistics.fmean(r.exact_iou for r in images),
        "3D IoU, exact picture, own mask": statistics.fmean(r.own_iou for r in images),
    }


def table(texts: Sequence[TextResult], images: Sequence[ImageResult]) -> str:
    """Markdown: the summary, then every object."""
    lines = ["| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in summary(texts, images).items()]
    lines += ["", "| object | colour | shape IoU | mask IoU | 3D IoU |", "|" + " --- |" * 5]
    for shape in SHAPES:
        own = [r for r in texts if r.shape == shape.name]
        exact = [r for r in images if r.shape == shape.name]
        if own and exact:
            figures = (
                statistics.fmean(r.found == r.wanted for r in own),
                statistics.fmean(r.shape_iou for r in own),
                statistics.fmean([*(r.mask_iou for r in own), *(r.mask_iou for r in exact)]),
                statistics.fmean(r.exact_iou for r in exact),
            )
            lines.append(f"| {shape.name} | " + " | ".join(f"{f:.2f}" for f in figures) + " |")
    return "\n".join(lines)


def report(models: Path, out: Path, *, count: int = 200, jobs: int, steps: int = STEPS) -> None:
    """Evaluates, prints a table, writes JSON and a picture grid into a folder.

    Args:
        models: What `jobs.train_all` wrote.
        out: The folder.
        count: Number of prompts.
        jobs: Processes, one thread each.
        steps: Denoising steps.
    """
    texts, images, rows = evaluate(models, count, jobs, steps)
    print(table(texts, images))
    for wrong in (r for r in texts if r.problem or r.found != r.wanted):
        print(f"{wrong.prompt!r}: {wrong.found}; {wrong.problem or 'valid'}")
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "summary": summary(texts, images),
        "prompts": [asdict(result) for result in texts],
        "pictures": [asdict(result) for result in images],
    }
    (out / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
    draw_sheet(rows, out / "evaluation.png")


def spare_cores() -> int:
    """Cores that this process may use, less one for whoever waits."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


def main() -> None:
    """Reads the command line and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.evaluate", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--out", type=Path, default=Path("train-embedded"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    parser.add_argument("--steps", type=int, default=STEPS, help="denoising steps")
    options = parser.parse_args()
    report(options.models, options.out, count=options.count, jobs=options.jobs, steps=options.steps)


if __name__ == "__main__":
    main()
