"""Measures the networks of the preset `embedded` on pairs that training never saw.

Three questions: does a prompt come back in the named colour and shape; is the cut-out's mask
right; is the 3D right when the picture and its pose are exact. Both 3D back ends lift the same
cut-outs.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.errors import GenerationError
from generation.lift.triposplat import Sampler, TripoSplat
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.prepare import prepare
from generation.lift.triposplat.splats import to_gaussians
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
from scripts.train_embedded.views import exact_views, views_psnr
from scripts.train_embedded.world import Solid, draw_solids, paint_table, trace

FRAMES_PER_OBJECT = 4
STEPS = 8
FRAME_SEED = 4242


BACK_ENDS = ("triposr", "triposplat")


@dataclass(frozen=True)
class TextResult:
    """What one prompt gave.

    Attributes:
        back_end: What lifted the cut-out.
        prompt: The prompt.
        wanted, found: Names of the colour asked for and of the nearest to the splat's mean.
        shape: Name of the object asked for.
        shape_iou: Of the cloud's solid with the average true shape at the best yaw.
        mask_iou: Of the cut-out with the mask that the plain background gives away.
        problem: Why there is no valid cloud; empty if there is one.
    """

    back_end: str
    prompt: str
    wanted: str
    found: str
    shape: str
    shape_iou: float
    mask_iou: float
    problem: str = ""


@dataclass(frozen=True)
class ImageResult:
    """What one exact picture gave.

    Attributes:
        shape: Name of the object.
        mask_iou: Of our mask with the exact one.
        exact_iou, own_iou: Of TripoSR's density field with the solid, with the exact and our mask.
        cloud_ious: Of each back end's cloud with the solid, with our mask.
        psnrs: In decibels, of 16 views of each back end's cloud, with our mask.
    """

    shape: str
    mask_iou: float
    exact_iou: float
    own_iou: float
    cloud_ious: dict[str, float]
    psnrs: dict[str, float]


class Networks:
    """The stages of the preset, loaded from a folder."""

    def __init__(self, folder: Path, steps: int = STEPS) -> None:
        settings = preset("embedded")
        update = {"max_sequence_length": T5_LENGTH, "steps": steps}
        drawing = settings.text_to_image.model_copy(update=update)
        cutting = settings.cutout.model_copy(update={"threads": 1})
        self.folder, self.settings, self.splats = folder, settings, settings.splats
        self.draw = Flux1.from_pretrained(folder / export.FLUX, drawing, "cpu")
        self.cut = BackgroundRemover(folder / export.BACKGROUND, cutting)
        self.triposr = TripoSR.from_pretrained(folder / export.TRIPOSR)

    def mask(self, image: Image.Image) -> Tensor:
        """The cut-out's alpha (H, W) in 0..1, before framing."""
        return tensor_of(self.cut.remove(image))[3]

    def lift(self, cutout: Image.Image, count: int | None = None) -> GaussianCloud:
        """A framed cut-out to a cloud of at most `count` Gaussians, the preset's if None."""
        return extract_cloud(self.triposr, self.scene_code(cutout), self.splats, count=count)

    def lifted(self, cutout: Image.Image, back_end: str, seed: int) -> GaussianCloud:
        """A framed cut-out to a cloud, by the back end of that name."""
        return self.lift(cutout) if back_end == "triposr" else self.sample(cutout, seed)

    def sample(self, cutout: Image.Image, seed: int) -> GaussianCloud:
        """A framed cut-out to TripoSplat's cloud."""
        model, encoders = self.triposplat
        own, generator = self.settings.triposplat, torch.Generator().manual_seed(seed)
        picture = prepare(cutout, canvas=encoders.picture_size)
        sampler = Sampler(
            model.flow,
            *encoders(picture, generator),
            steps=own.steps,
            guidance=own.guidance,
            shift=own.shift,
        )
        latent = sampler.sample(generator)
        made = model.decoder.decode(latent, own.max_gaussians, seed)
        return to_gaussians(made).to_splats().cloud

    @cached_property
    def triposplat(self) -> tuple[TripoSplat, PictureEncoders]:
        """TripoSplat and what looks at its pictures."""
        folder = self.folder / export.TRIPOSPLAT
        return TripoSplat.from_pretrained(folder), PictureEncoders.from_pretrained(folder)

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


def measure_prompt(
    networks: Networks, prompt: Prompt, seed: int
) -> tuple[list[TextResult], dict[str, Row]]:
    """Takes a prompt through every stage; returns results and rows of all back ends."""
    image = networks.draw(prompt.text, seed)
    wanted, shape = list(COLOURS)[prompt.colour], SHAPES[prompt.shape].name
    mask_iou = metrics.mask_iou(networks.mask(image), metrics.colour_key(tensor_of(image)))
    results, rows = [], {}
    for back_end in BACK_ENDS:
        rows[back_end] = row = Row(prompt.text, image)
        found, iou = "none", 0.0
        try:
            row.cutout = networks.cut(image)
            row.cloud = cloud = networks.lifted(row.cutout, back_end, seed)
        except GenerationError as error:
            problem = str(error)
        else:
            report = check(cloud)
            problem = "" if report.passed else report.summary()
            found = list(COLOURS)[int(nearest(metrics.mean_colour(cloud)))]
            iou = metrics.best_yaw_iou(cloud, prompt.shape)
        result = TextResult(back_end, prompt.text, wanted, found, shape, iou, mask_iou, problem)
        results.append(result)
    return results, rows


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
        mask_iou = metrics.mask_iou(networks.mask(picture), alpha)
        solid, cutout = solids.select(view), networks.cut(picture)
        clouds = {name: networks.lifted(cutout, name, view) for name in BACK_ENDS}
        exact_all = exact_views(solid, colours[view])
        result = ImageResult(
            shape=SHAPES[number].name,
            mask_iou=mask_iou,
            exact_iou=_solid_iou(networks, resize_foreground(exact), solid),
            own_iou=_solid_iou(networks, cutout, solid),
            cloud_ious={n: metrics.posed_iou(cloud, solid) for n, cloud in clouds.items()},
            psnrs={n: views_psnr(cloud, exact_all) for n, cloud in clouds.items()},
        )
        results.append(result)
    return results


def _solid_iou(networks: Networks, cutout: Image.Image, solid: Solid) -> float:
    density = networks.triposr.density_grid(networks.scene_code(cutout), metrics.GRID)
    radius, threshold = networks.triposr.radius, networks.splats.threshold
    return metrics.occupancy_iou(density, threshold, solid, radius)


Share = tuple[list[tuple[list[TextResult], dict[str, Row]]], list[ImageResult]]


def _measure_object(task: tuple[int, list[tuple[int, Prompt]], Path, int]) -> Share:
    number, prompts, folder, steps = task
    networks = Networks(folder, steps)
    # Numba, which rembg has loaded by now, sets it to the number of cores.
    torch.set_num_threads(1)
    texts = [measure_prompt(networks, prompt, seed) for seed, prompt in prompts]
    return texts, measure_images(networks, number)


def evaluate(
    folder: Path, count: int, jobs: int, steps: int = STEPS
) -> tuple[list[TextResult], list[ImageResult], list[dict[str, Row]]]:
    """Measures `count` prompts and 4 exact pictures of every object, `jobs` objects at a time.

    Returns:
        Results, and the first rows of every object, by back end, for the picture grids.
    """
    prompts = list(enumerate(evaluation_prompts(count)))
    tasks = [
        (number, [item for item in prompts if item[1].shape == number], folder, steps)
        for number in range(len(SHAPES))
    ]
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        shares = list(tqdm(pool.imap(_measure_object, tasks), total=len(tasks), desc="objects"))
    texts = [result for share, _ in shares for results, _ in share for result in results]
    rows = [row for share, _ in shares for _, row in share[:1]]
    return texts, [result for _, images in shares for result in images], rows


def summary(
    texts: Sequence[TextResult], images: Sequence[ImageResult]
) -> dict[str, dict[str, float]]:
    """The figures that matter, by back end: shares and means in 0..1, and decibels."""
    found = {}
    for back_end in BACK_ENDS:
        own = [r for r in texts if r.back_end == back_end]
        found[back_end] = {
            "prompts": len(own),
            "named colour right": statistics.fmean(r.found == r.wanted for r in own),
            "shape IoU at best yaw": statistics.fmean(r.shape_iou for r in own),
            "valid assets": statistics.fmean(not r.problem for r in own),
            "cloud IoU, exact picture, own mask": statistics.fmean(
                r.cloud_ious[back_end] for r in images
            ),
            "PSNR of 16 views, exact picture, own mask": statistics.fmean(
                r.psnrs[back_end] for r in images
            ),
        }
    return found


def field_summary(texts: Sequence[TextResult], images: Sequence[ImageResult]) -> dict[str, float]:
    """The figures that do not depend on the back end, or that only TripoSR's field has."""
    return {
        "mask IoU on FLUX's pictures": statistics.fmean(r.mask_iou for r in texts),
        "mask IoU on exact pictures": statistics.fmean(r.mask_iou for r in images),
        "3D IoU of TripoSR's field, exact picture and mask": statistics.fmean(
            r.exact_iou for r in images
        ),
        "3D IoU of TripoSR's field, exact picture, own mask": statistics.fmean(
            r.own_iou for r in images
        ),
    }


def table(texts: Sequence[TextResult], images: Sequence[ImageResult]) -> str:
    """Markdown: the summaries, then every object."""
    found = summary(texts, images)
    lines = ["| figure | " + " | ".join(BACK_ENDS) + " |", "|" + " --- |" * (1 + len(BACK_ENDS))]
    for name in found[BACK_ENDS[0]]:
        lines.append(f"| {name} | " + " | ".join(f"{found[b][name]:.3f}" for b in BACK_ENDS) + " |")
    lines += ["", "| figure | value |", "| --- | --- |"]
    lines += [f"| {name} | {value:.3f} |" for name, value in field_summary(texts, images).items()]
    heads = [f"{name}, {b}" for b in BACK_ENDS for name in ("colour", "shape IoU", "PSNR")]
    lines += ["", "| object | mask IoU | 3D IoU | " + " | ".join(heads) + " |"]
    lines.append("|" + " --- |" * (3 + len(heads)))
    for shape in SHAPES:
        own = [r for r in texts if r.shape == shape.name]
        exact = [r for r in images if r.shape == shape.name]
        if own and exact:
            figures = [
                statistics.fmean([*(r.mask_iou for r in own), *(r.mask_iou for r in exact)]),
                statistics.fmean(r.exact_iou for r in exact),
            ]
            for back_end in BACK_ENDS:
                its = [r for r in own if r.back_end == back_end]
                figures += [
                    statistics.fmean(r.found == r.wanted for r in its),
                    statistics.fmean(r.shape_iou for r in its),
                    statistics.fmean(r.psnrs[back_end] for r in exact),
                ]
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
        print(f"{wrong.back_end}, {wrong.prompt!r}: {wrong.found}; {wrong.problem or 'valid'}")
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "summary": {**summary(texts, images), "both": field_summary(texts, images)},
        "prompts": [asdict(result) for result in texts],
        "pictures": [asdict(result) for result in images],
    }
    (out / "evaluation.json").write_text(json.dumps(content, indent=1) + "\n")
    draw_sheet([row["triposr"] for row in rows], out / "evaluation.png")
    draw_sheet([row["triposplat"] for row in rows], out / "evaluation-triposplat.png")


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
