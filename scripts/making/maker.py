"""One engine that makes objects one after the other, and writes the files of each."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from generation.engine import Engine
from generation.errors import EngineDead, GenerationEnded
from generation.plan import Output, Plan, StepEvent
from generation.scoring.validity import check
from generation.settings import GenerationSettings
from generation.stage import Asset, StageFunction, StepContext, TriangleMesh
from generation.words import in_one_line, refusal, understand
from protocol import spz
from protocol.errors import TaskError
from protocol.files import replace_file
from protocol.gaussians import GaussianCloud
from protocol.tasks import Task, TextTask
from protocol.text import printable
from scripts.making.files import MESHES, Made, VideoSettings, encode, preview_of, reason

if TYPE_CHECKING:
    from generation.loading import LoadedStages

MADE, NOT_MADE, WRONG = 0, 1, 2
"""Exit statuses."""


@dataclass(frozen=True)
class Subject:
    """What an object is made from.

    Attributes:
        shown: The prompt or the name of the picture, as a terminal may show it.
        task: What the engine is asked.
        files: Where the object goes; at least one.
    """

    shown: str
    task: Task
    files: Sequence[Path]


def make_all(
    settings: GenerationSettings,
    subjects: Sequence[Subject],
    *,
    models_dir: Path | None,
    video: VideoSettings,
    preview: bool,
) -> int:
    """Loads a preset once, makes every object, and prints what became of it.

    An object that cannot be made is reported, and the next one begun; a file that cannot be written
    ends the work. A prompt without a word that the networks know is refused before they are loaded.

    Args:
        settings: The preset. Text to image is loaded only if a subject is text.
        subjects: What to make, in order; at least one.
        models_dir: The models folder; the default one when None.
        video: The turntable of an .mp4.
        preview: Whether every object gets a picture beside its first file.

    Returns:
        `MADE`, `NOT_MADE` or `WRONG`.

    Raises:
        SetupError: The preset cannot be loaded.
    """
    for subject in subjects:
        if isinstance(subject.task, TextTask):
            why = refusal(subject.task.prompt, settings.vocabulary)
            if why is not None:
                return failed(f"{subject.shown}: {why}", WRONG)
    loaded = _load(settings, models_dir, subjects)
    engine = Engine(
        settings,
        functions=once_for_each_task({**loaded.functions, "encode": _encoder(settings.spz_level)}),
        drop_caches=loaded.drop_caches,
        remembers=loaded.remembers,
    )

    with asyncio.Runner() as runner:
        try:
            return _make_each(runner, engine, subjects, video, preview)
        finally:
            runner.run(engine.close())


def once_for_each_task(functions: Mapping[str, StageFunction]) -> dict[str, StageFunction]:
    """Makes stage functions give a second plan of the same task what the first one made.

    So the mesh of an object is made of its cloud's scene code, and nothing is drawn twice.

    Args:
        functions: By stage. One task at a time may use them.
    """
    results: dict[tuple[str, int], Any] = {}
    latest: list[Task] = []

    def once(stage: str, function: StageFunction) -> StageFunction:
        def run(value: Any, context: StepContext) -> Any:
            if latest != [context.task]:
                latest[:] = [context.task]
                results.clear()
            key = (stage, context.index)
            if key not in results:
                results[key] = function(value, context)
            return results[key]

        return run

    return {stage: once(stage, function) for stage, function in functions.items()}


def failed(sentence: str, status: int) -> int:
    """Prints an error and returns the exit status."""
    print(f"error: {sentence}", file=sys.stderr)
    return status


def _load(
    settings: GenerationSettings, models_dir: Path | None, subjects: Sequence[Subject]
) -> "LoadedStages":
    from generation.loading import load

    image_only = not any(isinstance(subject.task, TextTask) for subject in subjects)
    with tqdm(disable=None, leave=False, bar_format="{desc} ({elapsed})") as bar:
        return load(
            settings,
            models_dir,
            lambda what: bar.set_description_str(f"loading {what}"),
            image_only=image_only,
        )


def _encoder(level: int) -> StageFunction:
    """As the engine's own `encode`, but what validators would refuse is for the user to judge."""

    def encode(cloud: GaussianCloud, context: StepContext) -> Asset:
        data = spz.encode(cloud, level=level)
        return Asset(cloud, data, check(cloud, wire_bytes=len(data)))

    return encode


def _make_each(
    runner: asyncio.Runner,
    engine: Engine,
    subjects: Sequence[Subject],
    video: VideoSettings,
    preview: bool,
) -> int:
    # Files are made outside the event loop, where ctrl-C would wait for a video to be drawn.
    status = MADE
    for subject in subjects:
        files = list(subject.files)
        picture = preview_of(files) if preview else None
        if picture is not None:
            files.append(picture)
        try:
            made, timings = runner.run(_make(engine, subject, files))
        except (GenerationEnded, TaskError) as error:
            status = failed(f"{subject.shown}: {error}", NOT_MADE)
            if isinstance(error, EngineDead):
                return status
            continue
        _tell(subject, made, timings, engine.settings)
        for file in files:
            try:
                data = encode(made, file.suffix.lower(), video)
                replace_file(file, data)
            except OSError as error:
                return failed(f"cannot write {printable(str(file))}: {reason(error)}", WRONG)
            print(f"  {printable(str(file))}: {len(data):,} bytes", flush=True)
    return status


async def _make(
    engine: Engine, subject: Subject, files: Sequence[Path]
) -> tuple[Made, Mapping[str, float]]:
    """Makes what the files need: a cloud, a mesh or both; returns the seconds of the stages."""
    are_meshes = {file.suffix.lower() in MESHES for file in files}
    outputs: list[Output] = ["mesh" if is_mesh else "splats" for is_mesh in sorted(are_meshes)]
    rung = engine.ladder[0]
    plans = [Plan(rung, engine.route(subject.task, rung, output)) for output in outputs]
    asset, mesh = None, None
    timings: dict[str, float] = {}
    total = sum(len(plan.steps) for plan in plans)
    with tqdm(total=total, disable=None, leave=False, unit="step") as bar:

        def show(event: StepEvent) -> None:
            if event.kind == "started":
                bar.set_description_str(f"{event.step.stage}, {printable(subject.shown, 40)}")
            elif event.kind == "finished":
                bar.update()

        for plan in plans:
            generation = await engine.run(subject.task, plan, on_event=show)
            timings |= {
                stage: seconds
                for stage, seconds in generation.timings.items()
                if stage not in timings
            }
            if isinstance(generation.made, TriangleMesh):
                mesh = generation.made
            else:
                asset = generation.asset
    return Made(asset, mesh), timings


def _tell(
    subject: Subject, made: Made, timings: Mapping[str, float], settings: GenerationSettings
) -> None:
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in timings.items())
    facts = [f"{sum(timings.values()):.1f} s ({stages})"]
    if made.asset is not None:
        facts.append(f"{len(made.asset.cloud):,} Gaussians, {made.asset.validity.summary()}")
    if made.mesh is not None:
        facts.append(f"{len(made.mesh.faces):,} triangles")
    print(f"{subject.shown}: {'; '.join(facts)}", flush=True)
    if settings.vocabulary and isinstance(subject.task, TextTask):
        words = understand(subject.task.prompt, settings.vocabulary)
        print(f"  {in_one_line(words.understood, words.ignored)}", flush=True)
