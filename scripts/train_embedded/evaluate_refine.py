"""Measures what refinement does for clouds of the small back ends, on exact pictures.

Every picture is exact, as is what it is compared with: the same object, in the same light, through
the validator's cameras. Finished objects are kept, so that a run goes on where another ended.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.lift.refine import Refinement
from generation.lift.refine.pose import Lens, view_of
from generation.lift.refine.stage import tensors_of
from generation.lift.targets import target_of
from generation.packing import GaussianTensors
from generation.rendering.cameras import FOV
from generation.rendering.device_cloud import DeviceCloud
from generation.scoring.embedded import FOLDER, EmbeddedScorer, read
from generation.scoring.validity import check
from generation.stage import Asset
from protocol import spz
from protocol.tasks import TextTask
from scripts.train_embedded import metrics
from scripts.train_embedded.evaluate import BACK_ENDS, Networks, spare_cores
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.prompts import Prompt, evaluation_prompts
from scripts.train_embedded.true_views import Example, cameras_around, draw_example, psnr

VIEW_SIZE = 96
CPU = torch.device("cpu")
Key = tuple[int, str, str]
"""Number of an example, back end and camera."""
CAMERAS = ("known", "unknown")
DEVELOPMENT = 100_000
"""Number of the first example that constants are chosen on; none of them is among the evaluated."""


@dataclass(frozen=True)
class Figures:
    """How well a cloud matches its object.

    Attributes:
        known: PSNR of the picture that the cloud was made from, through its true camera.
        views: Mean PSNR of the validator's 16 views.
        iou: Intersection over union of the solids, framed as clouds are.
        score: Of the local scorer, which gets colour and object.
    """

    known: float
    views: float
    iou: float
    score: float


@dataclass(frozen=True)
class Result:
    """What refinement did for one object; gain and silhouette are those of `Refinement`.

    Attributes:
        number: Of the example.
        back_end: What made the cloud.
        camera: Whether refinement was given the picture's camera, one of `CAMERAS`.
        shape: Name of the object.
        before, after: The cloud without and with refinement.
        changed: Whether there is a difference.
    """

    number: int
    back_end: str
    camera: str
    shape: str
    before: Figures
    after: Figures
    changed: bool
    gain: float
    silhouette: float

    @property
    def key(self) -> Key:
        """What it is the result of."""
        return self.number, self.back_end, self.camera


@dataclass(frozen=True)
class Options:
    """What is measured, and how.

    Attributes:
        models: Folder of the networks.
        steps: Of the refinement.
        size: Pixels per side at which it compares pictures.
        back_ends: What makes the clouds.
        cameras: Some of `CAMERAS`.
        known_count: How many objects are refined with a known camera.
        first: Number of the first example.
    """

    models: Path
    steps: int
    size: int
    back_ends: tuple[str, ...] = BACK_ENDS
    cameras: tuple[str, ...] = CAMERAS
    known_count: int = 200
    first: int = 0

    def keys(self, number: int) -> set[Key]:
        """Which results an example has, counted from the first one."""
        cameras = [c for c in self.cameras if c != "known" or number < self.known_count]
        return {(self.first + number, *pair) for pair in product(self.back_ends, cameras)}


class Measure:
    """Compares clouds with the object of an example."""

    def __init__(self, example: Example, prompt: Prompt, scorer: EmbeddedScorer) -> None:
        self._example, self._scorer = example, scorer
        self._wanted = TextTask(id="evaluation", prompt=prompt.text)
        # The last of the validator's views repeats the first.
        self._cameras = cameras_around(VIEW_SIZE)[:-1]
        distinct = example.views(self._cameras)
        self._truth = torch.cat([distinct, distinct[:1]])

    def __call__(self, cloud: GaussianTensors) -> Figures:
        """Measures one cloud."""
        host = cloud.to_cloud()
        placed = DeviceCloud.of(host, CPU)
        around = [
            (Lens.of(VIEW_SIZE, FOV), torch.from_numpy(camera.world_to_camera).float())
            for camera in self._cameras
        ]
        lens, pose = self._example.camera(len(self._example.cutout))
        with torch.no_grad():
            *views, known = (
                _on_white(lens.draw(placed, view))
                for lens, view in [*around, (lens, view_of(pose))]
            )
        found = torch.stack([*views, views[0]]).permute(0, 3, 1, 2)
        wanted = _on_white(target_of(self._example.cutout, len(self._example.cutout)))
        asset = Asset(host, spz.encode(host), check(host))
        return Figures(
            known=float(psnr(known[None], wanted[None])),
            views=float(psnr(found, self._truth).mean()),
            iou=metrics.posed_iou(host, self._example.solid),
            score=self._scorer.score(asset, self._wanted).value,
        )


def _on_white(picture: Tensor) -> Tensor:
    """(S, S, 3) of premultiplied colours and coverage."""
    return (picture[..., :3] + 1 - picture[..., 3:]).clamp(0, 1)


def measure_example(task: tuple[int, Options]) -> list[Result]:
    """Lifts one exact picture with every back end, refines the clouds and measures all."""
    number, options = task
    torch.set_num_threads(1)
    networks = _networks(options.models)
    settings = networks.settings
    *_, prompt = evaluation_prompts(number + 1)
    size = settings.text_to_image.size
    example = draw_example(options.first + number, prompt.shape, prompt.colour, size)
    measure = Measure(example, prompt, _scorer())
    results = []
    for back_end in options.back_ends:
        picture = Image.fromarray(example.cutout)
        start = tensors_of(networks.lifted(picture, back_end, number), CPU)
        before = measure(start)
        for camera in options.cameras:
            if camera == "known" and number >= options.known_count:
                continue
            refinement = Refinement(
                start,
                example.cutout,
                steps=options.steps,
                size=options.size,
                fov=settings.refine.fov,
                elevation=settings.refine.elevation,
                spread=settings.refine.spread,
                camera=example.camera(options.size) if camera == "known" else None,
            )
            refinement.run(options.steps)
            after = refinement.result()
            changed = after is not refinement.start
            results.append(
                Result(
                    options.first + number,
                    back_end,
                    camera,
                    SHAPES[prompt.shape].name,
                    before,
                    measure(after) if changed else before,
                    changed,
                    refinement.gain,
                    refinement.silhouette,
                )
            )
    return results


@cache
def _networks(folder: Path) -> Networks:
    return Networks(folder)


@cache
def _scorer() -> EmbeddedScorer:
    return read(FOLDER, CPU)


def tables(results: Sequence[Result]) -> str:
    """Markdown: a table for each back end and camera."""
    parts = []
    for back_end in dict.fromkeys(r.back_end for r in results):
        for camera in CAMERAS:
            some = [r for r in results if (r.back_end, r.camera) == (back_end, camera)]
            if some:
                parts.append(f"{back_end}, camera {camera}\n\n{table(some)}")
    return "\n\n".join(parts)


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
    lines += ["", f"{len(results)} objects; changed {changed:.1%}, 16 views {_said_of(gains)}"]
    by_score = [
        gain if r.after.score >= r.before.score else 0.0
        for gain, r in zip(gains, results, strict=True)
    ]
    lines.append(f"the better of the two by the local score: 16 views {_said_of(by_score)}")
    return "\n".join(lines)


def _said_of(gains: Sequence[float]) -> str:
    worse = statistics.fmean(gain < 0 for gain in gains)
    better = statistics.fmean(gain > 0 for gain in gains)
    return (
        f"better {better:.1%}, worse {worse:.1%}; gains from {min(gains):+.2f} to "
        f"{max(gains):+.2f} dB, mean {statistics.fmean(gains):+.2f} dB"
    )


process_pool = multiprocessing.get_context("spawn").Pool


def read_results(file: Path) -> list[Result]:
    """The results that a file of JSON lines holds; none if there is no file."""
    if not file.exists():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [
        Result(**row | {name: Figures(**row[name]) for name in ("before", "after")}) for row in rows
    ]


def measure_all(count: int, options: Options, out: Path, jobs: int) -> list[Result]:
    """Measures `count` examples, except for what a file holds of them, and appends to it.

    The file says nothing of steps and sizes: other ones need another file.
    """
    wanted = {key for number in range(count) for key in options.keys(number)}
    results = [r for r in read_results(out) if r.key in wanted]
    missing = wanted - {r.key for r in results}
    tasks = [(number, options) for number in range(count) if options.keys(number) & missing]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (
        out.open("a", encoding="utf-8") as lines,
        process_pool(jobs) as pool,
    ):
        for measured in tqdm(pool.imap(measure_example, tasks), total=len(tasks), desc="objects"):
            found = [r for r in measured if r.key in missing]
            results += found
            # All lines of an object at once, so that a file never holds a part of them.
            lines.write("".join(json.dumps(asdict(r)) + "\n" for r in found))
            lines.flush()
    return results


def main() -> None:
    """Reads the command line, measures what a file does not hold yet, and prints tables."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.evaluate_refine", description=__doc__
    )
    parser.add_argument("--models", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--out", type=Path, default=Path("train-embedded/refine.jsonl"))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=spare_cores())
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--lift.backend", dest="back_ends", action="append", choices=BACK_ENDS)
    parser.add_argument("--camera", dest="cameras", action="append", choices=CAMERAS)
    parser.add_argument(
        "--known-count", type=int, default=200, help="objects with a known camera (%(default)s)"
    )
    parser.add_argument(
        "--development", action="store_true", help="other examples, to choose constants on"
    )
    given = parser.parse_args()
    options = Options(
        models=given.models,
        steps=given.steps,
        size=given.size,
        back_ends=tuple(given.back_ends or BACK_ENDS),
        cameras=tuple(given.cameras or CAMERAS),
        known_count=given.known_count,
        first=DEVELOPMENT if given.development else 0,
    )
    print(tables(measure_all(given.count, options, given.out, given.jobs)))


if __name__ == "__main__":
    main()
