"""One engine that makes objects one after the other, and writes the files of each."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from generation.engine import Engine
from generation.errors import EngineDead, GenerationEnded, GenerationError
from generation.packing import Splats
from generation.plan import Output, Plan, StepEvent
from generation.result import Generation
from generation.scoring.score import Scorer
from generation.scoring.validity import report_on
from generation.settings import GenerationSettings, ScoringSettings
from generation.stage import Asset, StageFunction, StepContext, TriangleMesh
from generation.words import in_one_line, refusal, understand
from miner.scheduling.candidates import seed_of
from protocol import spz
from protocol.errors import SetupError, TaskError
from protocol.files import replace_file
from protocol.tasks import Task, TextTask
from protocol.text import printable
from scripts.making.files import MESHES, Made, VideoSettings, encode, preview_of, reason

if TYPE_CHECKING:
    from generation.lift.refine.stage import Refining
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
        candidates: How many objects are made of it, to keep the one with the best score.
    """

    shown: str
    task: Task
    files: Sequence[Path]
    candidates: int = 1


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
        SetupError: The preset cannot be loaded, or candidates are asked for without a scorer.
    """
    for subject in subjects:
        if isinstance(subject.task, TextTask):
            why = refusal(subject.task.prompt, settings.vocabulary)
            if why is not None:
                return failed(f"{subject.shown}: {why}", WRONG)
    from generation.loading import scoring_stages

    loaded, scorer = _load(settings, models_dir, subjects)
    functions = {**loaded.functions, "encode": _encoder(settings.spz_level)}
    if scorer is None:
        settings = settings.model_copy(update={"scoring": ScoringSettings()})
    else:
        functions |= scoring_stages(scorer)
    engine = Engine(
        settings,
        functions=once_for_each_task(functions),
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
) -> "tuple[LoadedStages, Scorer | None]":
    """Loads the scorer, and what makes objects; a score is told where it can be had."""
    from generation.loading import load, load_scorer, require_device

    image_only = not any(isinstance(subject.task, TextTask) for subject in subjects)
    needed = any(subject.candidates > 1 for subject in subjects)
    scorer = None
    with tqdm(disable=None, leave=False, bar_format="{desc} ({elapsed})") as bar:

        def report(what: str) -> None:
            bar.set_description_str(f"loading {what}")

        try:
            scorer = load_scorer(settings, models_dir, require_device(settings), report)
        except SetupError as error:
            if needed:
                raise
            bar.write(f"objects are not scored: {printable(str(error), 500)}", file=sys.stderr)
        if needed and scorer is None:
            raise SetupError(
                "the best of several candidates cannot be told without a scorer",
                fix="leave out --candidates, or --scoring.scorer none",
            )
        plain = settings.model_copy(update={"scoring": ScoringSettings()})
        return load(plain, models_dir, report, image_only=image_only), scorer


def _encoder(level: int) -> StageFunction:
    """As the engine's own `encode`, but what validators would refuse is for the user to judge."""
    from generation.loading import splats_of

    def encode(made: "Splats | Refining", context: StepContext) -> Asset:
        splats = splats_of(made)
        data = spz.compress(splats.payload, level=level)
        return Asset(splats.cloud, data, report_on(splats.measures, wire_bytes=len(data)))

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
            made, timings, choice = runner.run(_make(engine, subject, files))
        except (GenerationEnded, TaskError) as error:
            status = failed(f"{subject.shown}: {error}", NOT_MADE)
            if isinstance(error, EngineDead):
                return status
            continue
        _tell(subject, made, timings, choice, engine.settings)
        for file in files:
            try:
                data = encode(made, file.suffix.lower(), video)
                replace_file(file, data)
            except OSError as error:
                return failed(f"cannot write {printable(str(file))}: {reason(error)}", WRONG)
            print(f"  {printable(str(file))}: {len(data):,} bytes", flush=True)
    return status


@dataclass(frozen=True)
class Choice:
    """Which of several candidates was kept.

    Attributes:
        seed: Its seed; None for the preset's.
        made: How many could be made.
        failed: How many could not.
        first: Score of the first one; None if it could not be made, or not be scored.
    """

    seed: int | None
    made: int
    failed: int
    first: float | None


async def _make(
    engine: Engine, subject: Subject, files: Sequence[Path]
) -> tuple[Made, Mapping[str, float], Choice | None]:
    """Makes what the files need: a cloud, a mesh or both; returns the seconds of the stages.

    Of several candidates, clouds are made and compared, and the mesh is that of the best one.
    """
    are_meshes = {file.suffix.lower() in MESHES for file in files}
    outputs: list[Output] = ["mesh" if is_mesh else "splats" for is_mesh in sorted(are_meshes)]
    if subject.candidates > 1 and "splats" not in outputs:
        outputs.insert(0, "splats")
    rung = engine.ladder[0]
    plans = {output: Plan(rung, engine.route(subject.task, rung, output)) for output in outputs}
    counts = [len(plan.steps) for plan in plans.values()]
    timings: dict[str, float] = {}
    with tqdm(
        total=sum(counts) + (subject.candidates - 1) * counts[0],
        disable=None,
        leave=False,
        unit="step",
    ) as bar:

        def show(event: StepEvent) -> None:
            if event.kind == "started":
                bar.set_description_str(f"{event.step.stage}, {printable(subject.shown, 40)}")
            elif event.kind == "finished":
                bar.update()

        async def run(task: Task, output: Output) -> Asset | TriangleMesh:
            end = bar.n + len(plans[output].steps)
            taken: Mapping[str, float] = {}
            unscored: list[Generation] = []
            try:
                try:
                    generation = await engine.run(
                        task, plans[output], on_event=show, on_made=unscored.append
                    )
                except EngineDead:
                    if not unscored:
                        raise
                    (generation,) = unscored  # The next run tells that the engine is dead.
                taken = generation.timings
            except GenerationEnded as error:
                taken = error.timings
                raise
            finally:
                bar.update(end - bar.n)  # Steps that failed, or that were not started.
                for stage, seconds in taken.items():
                    timings[stage] = timings.get(stage, 0.0) + seconds
            return generation.made  # type: ignore[return-value]  # Only `rate` ends in a cut-out.

        task, choice = subject.task, None
        made: dict[Output, Asset | TriangleMesh] = {}
        if subject.candidates > 1:
            task, made["splats"], choice = await best_of(subject, run)
        for output in outputs:
            if output not in made:
                made[output] = await run(task, output)
    asset, mesh = made.get("splats"), made.get("mesh")
    assert asset is None or isinstance(asset, Asset)
    assert mesh is None or isinstance(mesh, TriangleMesh)
    return Made(asset, mesh), timings, choice


async def best_of(
    subject: Subject, run: Callable[[Task, Output], Awaitable[Asset | TriangleMesh]]
) -> tuple[Task, Asset, Choice]:
    """Makes all candidates; returns the task with the best one's seed, and its cloud.

    One that cannot be made is left out. One that cannot be scored is kept if there is no other.
    With an engine that dies, the best one so far is kept.

    Raises:
        GenerationError: None of them could be made.
        EngineDead: The engine died before one was made.
    """
    scored: list[tuple[float, int, Task, Asset]] = []
    first: float | None = None
    problem: Exception | None = None
    for number in range(subject.candidates):
        seed = seed_of(subject.task.seed, number)
        task = subject.task.model_copy(update={"seed": seed})
        try:
            asset = await run(task, "splats")
        except EngineDead:
            if not scored:
                raise
            break
        except (GenerationEnded, TaskError) as error:
            problem = problem or error
            continue
        assert isinstance(asset, Asset)
        score = None if asset.score is None else asset.score.value
        if number == 0:
            first = score
        scored.append((-1.0 if score is None else score, -number, task, asset))
    if not scored:
        raise GenerationError(
            f"none of {subject.candidates} candidates could be made; the first: {problem}"
        ) from problem
    _, _, task, asset = max(scored, key=lambda each: each[:2])
    failed = subject.candidates - len(scored)
    return task, asset, Choice(task.seed, len(scored), failed, first)


def _tell(
    subject: Subject,
    made: Made,
    timings: Mapping[str, float],
    choice: Choice | None,
    settings: GenerationSettings,
) -> None:
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in timings.items())
    facts = [f"{sum(timings.values()):.1f} s ({stages})"]
    if made.asset is not None:
        facts.append(f"{len(made.asset.cloud):,} Gaussians, {made.asset.validity.summary()}")
    if made.mesh is not None:
        facts.append(f"{len(made.mesh.faces):,} triangles")
    print(f"{subject.shown}: {'; '.join(facts)}", flush=True)
    score = None if made.asset is None else made.asset.score
    if score is not None or choice is not None:
        scored = "no score" if score is None else score.in_words
        print(f"  {scored}{_choice_in_words(choice)}", flush=True)
    if settings.vocabulary and isinstance(subject.task, TextTask):
        words = understand(subject.task.prompt, settings.vocabulary)
        print(f"  {in_one_line(words.understood, words.ignored)}", flush=True)


def _choice_in_words(choice: Choice | None) -> str:
    if choice is None:
        return ""
    seed = "the preset's seed" if choice.seed is None else f"seed {choice.seed}"
    words = f"; the best of {choice.made}, {seed}"
    if choice.failed:
        words += f"; {choice.failed} could not be made"
    return words if choice.first is None else f"{words}; the first {choice.first:.3f}"
