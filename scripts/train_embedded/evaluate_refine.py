"""Measures what refinement does for clouds of the small TripoSR, on exact pictures.

Every picture is exact, as is what it is compared with: the same object, in the same light, through
the validator's cameras.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.lift.refine import Refinement
from generation.lift.refine.pose import view_of
from generation.lift.refine.refinement import target_of
from generation.lift.triposr import TripoSR
from generation.lift.triposr.splats import extract_gaussians
from generation.packing import GaussianTensors
from generation.pictures.framing import composite_on_grey
from generation.presets import preset
from generation.rendering.device_cloud import DeviceCloud
from generation.rendering.views import render_on_white
from scripts.train_embedded import export, metrics
from scripts.train_embedded.evaluate import spare_cores
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.prompts import evaluation_prompts
from scripts.train_embedded.true_views import Example, cameras_around, draw_example, psnr

VIEW_SIZE = 256


@dataclass(frozen=True)
class Figures:
    """How well a cloud matches its object.

    Attributes:
        known: PSNR of the picture that the cloud was made from, through its true camera.
        views: Mean PSNR of the validator's 16 views.
        iou: Intersection over union of the solids, framed as clouds are.
    """

    known: float
    views: float
    iou: float


@dataclass(frozen=True)
class Result:
    """What refinement did for one object; gain and silhouette are those of `Refinement`."""

    shape: str
    before: Figures
    after: Figures
    changed: bool
    gain: float
    silhouette: float


def measure(example: Example, truth: Tensor, cloud: GaussianTensors) -> Figures:
    """Compares a cloud with the object of an example, whose true views (16, 3, S, S) are known."""
    host = cloud.to_cloud()
    found = torch.from_numpy(render_on_white(host, cameras_around(VIEW_SIZE))) / 255
    lens, pose = example.camera(len(example.cutout))
    with torch.no_grad():
        seen = lens.draw(DeviceCloud.of(host, torch.device("cpu")), view_of(pose))
    wanted = target_of(example.cutout, len(example.cutout))
    pictures = [rgba[..., :3] + 1 - rgba[..., 3:] for rgba in (seen, wanted)]
    return Figures(
        known=float(psnr(pictures[0][None].clamp(0, 1), pictures[1][None])),
        views=float(psnr(found.permute(0, 3, 1, 2), truth).mean()),
        iou=metrics.posed_iou(host, example.solid),
    )


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Attributes:
        models: Folder of the networks.
        steps: Of the refinement.
        size: Pixels per side at which it compares pictures.
        camera_known: Whether it is given the picture's camera.
    """

    models: Path
    steps: int
    size: int
    camera_known: bool


def measure_example(task: tuple[int, Options]) -> Result:
    """Lifts one exact picture, refines the cloud and measures both."""
    number, options = task
    torch.set_num_threads(1)
    settings = preset("embedded")
    network = TripoSR.from_pretrained(options.models / export.TRIPOSR)
    *_, prompt = evaluation_prompts(number + 1)
    example = draw_example(number, prompt.shape, prompt.colour, settings.text_to_image.size)
    code = network.scene_codes(composite_on_grey(Image.fromarray(example.cutout)))
    start = extract_gaussians(network, code, settings.splats)
    # The last of the validator's views repeats the first.
    distinct = example.views(cameras_around(VIEW_SIZE)[:-1])
    truth = torch.cat([distinct, distinct[:1]])
    camera = example.camera(options.size) if options.camera_known else None
    refinement = Refinement(
        start,
        example.cutout,
        steps=options.steps,
        size=options.size,
        fov=settings.refine.fov,
        camera=camera,
    )
    refinement.run(options.steps)
    after = refinement.result()
    before, refined = (measure(example, truth, cloud) for cloud in (start, after))
    changed = after is not refinement.start
    return Result(
        SHAPES[prompt.shape].name, before, refined, changed, refinement.gain, refinement.silhouette
    )


def table(results: Sequence[Result]) -> str:
    """Markdown: means before and after, and how often the 16 views got better or worse."""
    lines = ["| mean of | before | after |", "| --- | --- | --- |"]
    for name, what in (
        ("known", "the known view, PSNR in dB"),
        ("views", "the validator's 16 views, PSNR in dB"),
        ("iou", "solids, intersection over union"),
    ):
        before = statistics.fmean(getattr(r.before, name) for r in results)
        after = statistics.fmean(getattr(r.after, name) for r in results)
        lines.append(f"| {what} | {before:.3f} | {after:.3f} |")
    gains = [r.after.views - r.before.views for r in results]
    changed = statistics.fmean(r.changed for r in results)
    worse = statistics.fmean(gain < 0 for gain in gains)
    better = statistics.fmean(gain > 0 for gain in gains)
    lines += [
        "",
        f"{len(results)} objects; changed {changed:.1%}, 16 views better {better:.1%}, worse "
        f"{worse:.1%}; gains from {min(gains):+.2f} to {max(gains):+.2f} dB, "
        f"mean {statistics.fmean(gains):+.2f} dB",
    ]
    return "\n".join(lines)


def main() -> None:
    """Reads the command line, measures, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.evaluate_refine", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--out", type=Path, default=Path("train-embedded/refine.json"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--camera-known", action="store_true")
    given = parser.parse_args()
    options = Options(given.models, given.steps, given.size, given.camera_known)
    tasks = [(number, options) for number in range(given.count)]
    results = []
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for result in tqdm(pool.imap(measure_example, tasks), total=given.count, desc="objects"):
            results.append(result)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
