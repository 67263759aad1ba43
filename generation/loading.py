"""From weights to stage functions: what an engine loads when it starts."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generation.acceleration.compiling import keep_compiled_code
from generation.acceleration.streams import all_to_host
from generation.errors import GenerationError, NoObject, OutOfMemory
from generation.lift import BACK_ENDS
from generation.lift.refine.stage import Refining, refining
from generation.packing import Splats
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.drawing import Drawing
from generation.pictures.framing import MAX_SIDE, composite_on_grey, lay_on_grey, pixels_of
from generation.pictures.loading import load_text_to_image
from generation.pictures.text_to_image import TextToImage
from generation.rendering import gsplat_backend
from generation.scoring.score import Scorer
from generation.scoring.validity import report_on
from generation.settings import GenerationSettings
from generation.stage import Asset, Cutout, StageFunction, StepContext
from generation.weights.cache_dir import cache_dir
from generation.weights.store import locate_models
from generation.words import known_prompt
from protocol import spz
from protocol.errors import SetupError, TaskError
from protocol.images import decode_image
from protocol.tasks import ImageTask, TextTask


@dataclass(frozen=True, eq=False)
class LoadedStages:
    """What an engine runs.

    Attributes:
        functions: What each stage does, by name.
        drop_caches: Gives back all memory that is only kept to save time. Callable from any thread.
        remembers: Whether a prompt's encoding is still in memory. Callable from any thread.
    """

    functions: Mapping[str, StageFunction]
    drop_caches: Callable[[], None]
    remembers: Callable[[str], bool]


@dataclass(frozen=True, eq=False)
class PictureNetworks:
    """What takes a task to a cut-out.

    Attributes:
        flux: Prompt to picture.
        background: Picture to cut-out.
    """

    flux: TextToImage
    background: BackgroundRemover


def require_device(settings: GenerationSettings) -> torch.device:
    """Returns the device of a preset.

    Raises:
        SetupError: It is neither the CPU nor a CUDA device, or this machine has none of that name.
    """
    fix = "name cpu, cuda or one of several GPUs, such as cuda:1"
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        problem = f"{settings.device!r} is no device of torch's: {error}"
        raise SetupError(problem, fix=fix) from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise SetupError(f"preset {settings.name} cannot run on {settings.device}", fix=fix)
    if not torch.cuda.is_available():
        raise SetupError(
            f"preset {settings.name} runs on {settings.device}, but torch {torch.__version__} "
            "finds no CUDA device",
            fix="check nvidia-smi and that torch is a CUDA build, or use --preset embedded "
            "--device cpu",
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise SetupError(
            f"preset {settings.name} runs on {settings.device}, but torch finds CUDA devices only "
            f"up to cuda:{count - 1}",
            fix="name one of these, or check nvidia-smi and CUDA_VISIBLE_DEVICES",
        )
    return device


def load(
    settings: GenerationSettings,
    models_dir: Path | None,
    report: Callable[[str], None],
    *,
    image_only: bool = False,
) -> LoadedStages:
    """Loads everything that the ladder of a preset needs, each back end once.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        report: Receives the name of what is loaded next: three times (with `image_only` two), then
            once per back end and once for the scorer, if there is one.
        image_only: Leave out text to image; only image tasks can be served then.

    Raises:
        SetupError: The device is not there, a file is missing or wrong, or memory runs out.
    """
    device = require_device(settings)
    start_compiling(settings, device)
    try:
        if image_only:
            background = load_background(settings, models_dir, device, report)
        else:
            pictures = load_pictures(settings, models_dir, device, report)
        back_ends = {}
        for name in dict.fromkeys(rung.back_end for rung in settings.ladder):
            report(name)
            loader = importlib.import_module(BACK_ENDS[name].loader)
            back_ends[name] = loader.load(settings, models_dir, device)
        scorer = load_scorer(settings, models_dir, device, report)
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"preset {settings.name} does not fit on {settings.device}: {error}",
            fix="free the device (nvidia-smi shows who uses it), use --preset gpu16, or, for "
            "--text_to_image.model schnell, add --text_to_image.eight_bit true",
        ) from error
    if image_only:
        return assemble_image_only(settings, background, back_ends, scorer)
    return assemble(settings, pictures, back_ends, scorer)


def start_compiling(settings: GenerationSettings, device: torch.device) -> None:
    """Lets gsplat compile itself, once for a minute, while networks are loaded and compiled."""
    renders = (
        settings.scoring.scorer == "validator"
        or settings.refine.steps
        or settings.lift.backend == "dreamgaussian"
    )
    if device.type == "cuda" and renders:
        gsplat_backend.start_trial()


def load_scorer(
    settings: GenerationSettings,
    models_dir: Path | None,
    device: torch.device,
    report: Callable[[str], None] = lambda what: None,
) -> Scorer | None:
    """Loads what scores objects; None if the preset has no scorer.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        device: From `require_device`.
        report: Receives the name of what is loaded next.

    Raises:
        SetupError: A file or a package is missing.
    """
    name = settings.scoring.scorer
    if name == "none":
        return None
    report("scorer")
    loader = importlib.import_module(f"generation.scoring.{name}")
    scorer: Scorer = loader.load(settings, models_dir, device)
    return scorer


def load_pictures(
    settings: GenerationSettings,
    models_dir: Path | None,
    device: torch.device,
    report: Callable[[str], None] = lambda what: None,
) -> PictureNetworks:
    """Loads the networks that take a task to a cut-out.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        device: From `require_device`.
        report: Receives the name of what is loaded next, three times.

    Raises:
        SetupError: A file is missing or wrong.
    """
    report("models folder")
    paths = locate_models(settings, models_dir)
    if settings.accelerate:
        keep_compiled_code(cache_dir() / "compiled")
    report("text to image")
    flux = load_text_to_image(
        paths.text_to_image,
        settings.text_to_image,
        settings.device,
        accelerate=settings.accelerate,
    )
    report("background")
    return PictureNetworks(flux, BackgroundRemover(paths.cutout, settings.cutout, device))


def load_background(
    settings: GenerationSettings,
    models_dir: Path | None,
    device: torch.device,
    report: Callable[[str], None] = lambda what: None,
) -> BackgroundRemover:
    """Loads what takes a picture to a cut-out, and no more; see `load_pictures`."""
    report("models folder")
    paths = locate_models(settings, models_dir, image_only=True)
    report("background")
    return BackgroundRemover(paths.cutout, settings.cutout, device)


def assemble(
    settings: GenerationSettings,
    pictures: PictureNetworks,
    back_ends: Mapping[str, Mapping[str, StageFunction]],
    scorer: Scorer | None = None,
) -> LoadedStages:
    """Makes stage functions of networks.

    Args:
        settings: The preset.
        pictures: The networks that take a task to a cut-out, on the preset's device.
        back_ends: The stage functions of every back end in the preset's ladder.
        scorer: What scores objects, if anything does.
    """
    flux = pictures.flux
    others = assemble_image_only(settings, pictures.background, back_ends, scorer)

    def prompt(task: TextTask, context: StepContext) -> Drawing:
        rung = context.rung
        words = known_prompt(task.prompt, settings.vocabulary)
        seeds = context.seeds or (task.seed,)
        return flux.begin(words, seeds, steps=rung.steps, size=rung.size)

    def denoise(drawing: Drawing, context: StepContext) -> Drawing:
        return flux.denoise(drawing)

    def decode(drawing: Drawing, context: StepContext) -> Tensor | tuple[Tensor, ...]:
        pictures = flux.decode(drawing)
        return pictures.unbind() if context.seeds else pictures[0]

    def drop_caches() -> None:
        flux.drop_caches()
        others.drop_caches()

    def remembers(prompt: str) -> bool:
        return flux.remembers(known_prompt(prompt, settings.vocabulary))

    functions: dict[str, StageFunction] = {"prompt": prompt, "denoise": denoise, "decode": decode}
    return LoadedStages(functions | dict(others.functions), drop_caches, remembers)


def assemble_image_only(
    settings: GenerationSettings,
    background: BackgroundRemover,
    back_ends: Mapping[str, Mapping[str, StageFunction]],
    scorer: Scorer | None = None,
) -> LoadedStages:
    """Makes stage functions that serve image tasks; see `assemble`."""

    def cutout(source: Tensor | ImageTask, context: StepContext) -> Cutout:
        return _cut_out(background, source, skip_plain=context.rung.skip_plain)

    if settings.refine.steps:
        device = torch.device(settings.device)
        back_ends = {name: refining(own, settings, device) for name, own in back_ends.items()}

    def encode(made: Splats | Refining, context: StepContext) -> Asset:
        return _encode(splats_of(made), settings.spz_level)

    def drop_caches() -> None:
        if scorer is not None:
            scorer.drop_caches()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    functions: dict[str, StageFunction] = {"cutout": _for_each(cutout), "encode": encode}
    if scorer is not None:
        functions |= scoring_stages(scorer)
    return LoadedStages(functions | _by_back_end(back_ends), drop_caches, lambda prompt: False)


def splats_of(made: Splats | Refining) -> Splats:
    """What the stage `encode` takes: a back end's splats, or these as far as they are refined."""
    return made.splats() if isinstance(made, Refining) else made


def scoring_stages(scorer: Scorer) -> dict[str, StageFunction]:
    """Makes stage functions of a scorer."""

    def rate(cutout: Cutout, context: StepContext) -> Cutout:
        return replace(cutout, rating=scorer.rate(cutout, context.task))

    def score(asset: Asset, context: StepContext) -> Asset:
        return replace(asset, score=scorer.score(asset, context.task))

    return {"rate": _for_each(rate), "score": score}


def _for_each(function: StageFunction) -> StageFunction:
    """Makes a function also of pictures that are drawn together, in a tuple.

    One that fails becomes None, unless all do.
    """

    def run(value: Any, context: StepContext) -> Any:
        if not isinstance(value, tuple):
            return function(value, context)
        made: list[Any] = []
        failure: GenerationError | None = None
        for picture in value:
            try:
                made.append(None if picture is None else function(picture, context))
            except OutOfMemory:
                raise
            except GenerationError as error:
                made.append(None)
                failure = error
        if failure is not None and not any(each is not None for each in made):
            raise failure
        return tuple(made)

    return run


def _by_back_end(
    back_ends: Mapping[str, Mapping[str, StageFunction]],
) -> dict[str, StageFunction]:
    """Makes one function of those with the same name, which asks the rung for its back end."""

    def choose(stage: str) -> StageFunction:
        def run(value: Any, context: StepContext) -> Any:
            return back_ends[context.rung.back_end][stage](value, context)

        return run

    return {stage: choose(stage) for functions in back_ends.values() for stage in functions}


def _cut_out(
    background: BackgroundRemover, source: Tensor | ImageTask, *, skip_plain: bool
) -> Cutout:
    if isinstance(source, ImageTask):
        image = decode_image(source.image, side=MAX_SIDE)
        try:
            framed = background.framed(image, skip_plain=skip_plain)
        except NoObject as error:
            raise TaskError(f"{error}; send a picture of one object") from error
        shown = pixels_of(composite_on_grey(image) if image.mode == "RGBA" else image)
    else:
        framed = background.framed(source, skip_plain=skip_plain)
        shown = source
    # On grey here and not in the back end's first stage: there the GPU would wait for it.
    on_grey = lay_on_grey(framed)
    # Waits for the stream: another thread's may read `on_grey` now, and write over `source`.
    rgba, grey, picture = all_to_host(framed, on_grey, shown)
    return Cutout(picture, rgba, grey, on_device=on_grey)


def _encode(splats: Splats, level: int) -> Asset:
    file = spz.compress(splats.payload, level=level)
    report = report_on(splats.measures, wire_bytes=len(file))
    if not report.passed:
        raise GenerationError(f"a validator would score the cloud 0: {report.summary()}")
    return Asset(splats.cloud, file, report)


def device_name(device: str) -> str:
    """Returns what kind of device this is: the GPU's name, or "cpu" with the number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' * (threads != 1)}"
