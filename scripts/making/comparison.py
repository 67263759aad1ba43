"""Draws prompts with several text-to-image models, and scores the object of each picture."""

import gc
import io
import json
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from tqdm import tqdm

from generation import recovery
from generation.errors import GenerationError
from generation.lift import stages_of
from generation.loading import LoadedStages, device_name, load, require_device
from generation.pictures.loading import load_text_to_image
from generation.plan import Rung
from generation.presets import preset
from generation.settings import GenerationSettings, TextToImageSettings
from generation.stage import Asset, StepContext, route
from generation.weights.acceptance import require_acceptance
from generation.weights.sources import FLUX_NAMES
from generation.weights.store import EMBEDDED, ModelStore, default_models_dir, fetch_command
from generation.words import known_prompt
from protocol.errors import SetupError
from protocol.files import replace_file
from protocol.tasks import TextTask
from protocol.text import printable
from scripts.making.comparison_sheet import draw_sheet
from scripts.making.files import reason

Report = Callable[[str], None]

_DRAWING = ("prompt", "denoise", "decode")


@dataclass(frozen=True)
class Attempt:
    """One picture of a prompt and what became of it.

    Attributes:
        prompt: The prompt.
        seed: Seed of the noise.
        picture: Its file, a PNG.
        draw_s: Seconds from the prompt to the picture.
        score: What the preset's scorer says of the object; 0 if there is none, None if the scorer
            failed.
        parts: What the score is made of.
        problem: Why there is no object; empty if there is one.
        unscored: Why the object has no score; empty if it has one, or if there is no object.
    """

    prompt: str
    seed: int
    picture: Path
    draw_s: float
    score: float | None = None
    parts: Mapping[str, float] | None = None
    problem: str = ""
    unscored: str = ""


def compare(
    settings: GenerationSettings,
    models: Sequence[str],
    prompts: Sequence[str],
    *,
    seeds: int,
    out: Path,
    models_dir: Path | None = None,
) -> dict[str, Any]:
    """Compares models, one in memory at a time, and prints and writes what was found.

    Pictures are written as they are drawn, so memory does not grow with their number.

    Args:
        settings: The preset: everything but the model.
        models: Short names, "embedded", or folders.
        prompts: What to draw.
        seeds: Pictures of each prompt.
        out: Folder for `comparison.json`, `comparison.png` and the pictures.
        models_dir: The models folder; the default one when None.

    Returns:
        What `comparison.json` holds: `preset`, `machine`, `scorer`, `seeds` and `models`, by name:
        `score` (mean over prompts), `best` (mean over prompts of the best of their seeds), `made`
        (objects), `unscored` (objects that the scorer failed on, which count in no mean), `draw_s`
        (median), `ahead` (mean of the differences from the first model over the prompts that both
        have a score of) with `ahead_error` (its standard error; None for one prompt), and
        `attempts`. A mean of nothing is None.

    Raises:
        SetupError: A model or the scorer cannot be loaded, or the files cannot be written.
        EngineDead: The device is lost.
    """
    if settings.scoring.scorer == "none":
        raise SetupError(
            "a comparison needs a scorer, and --scoring.scorer is none",
            fix="leave it out: the presets have one",
        )
    require_device(settings)
    require_acceptance(settings)
    folders = {model: _folder(model, settings, models_dir) for model in models}
    total = 2 * len(models) * len(prompts) * seeds
    with tqdm(total=total, disable=None, leave=False) as bar:
        drawn = {
            model: _draw(
                settings, model, folder, prompts, seeds, _picture_folder(out, number, model), bar
            )
            for number, (model, folder) in enumerate(folders.items(), 1)
        }
        bar.set_description_str("loading what makes objects")
        stages = load(settings, models_dir, lambda what: None, image_only=True)
        attempts: dict[str, list[Attempt]] = {}
        for model, pictures in drawn.items():
            bar.set_description_str(f"scoring {_shown(model)}")
            attempts[model] = []
            for picture in pictures:
                attempts[model].append(_judge(settings, stages, picture))
                bar.update()
    figures = {
        "preset": settings.name,
        "machine": device_name(settings.device),
        "scorer": settings.scoring.scorer,
        "seeds": seeds,
        "models": _figures(attempts, out),
    }
    _write(out, figures, attempts)
    _show(figures, out)
    return figures


def _folder(model: str, settings: GenerationSettings, models_dir: Path | None) -> Path:
    """Returns where a model is, once its files are as locked.

    Raises:
        SetupError: It has not been downloaded, or is damaged.
    """
    if model == "embedded":
        return EMBEDDED / "flux"
    source = FLUX_NAMES.models.get(model)
    if source is None:
        return Path(model)
    store = ModelStore(models_dir or default_models_dir())
    wanted = settings if settings.models else preset("gpu24")
    drawing = wanted.text_to_image.model_copy(update={"model": source})
    wanted = wanted.model_copy(update={"text_to_image": drawing})
    store.verify(source, fix=fetch_command(wanted, models_dir))
    return store.folder(source)


def _draw(
    settings: GenerationSettings,
    model: str,
    folder: Path,
    prompts: Sequence[str],
    seeds: int,
    pictures: Path,
    bar: Any,
) -> list[Attempt]:
    bar.set_description_str(f"loading {_shown(model)}")
    drawing = _drawing(settings, model)
    try:
        draw = load_text_to_image(folder, drawing, settings.device, accelerate=settings.accelerate)
        # What is done once, such as compiling, is not the pictures' time.
        draw(prompts[0], steps=drawing.steps)
        bar.set_description_str(f"drawing with {_shown(model)}")
        attempts = []
        for number, prompt in enumerate(prompts, 1):
            text = known_prompt(prompt, settings.vocabulary) if model == "embedded" else prompt
            for seed in range(seeds):
                draw.drop_caches()
                begin = time.perf_counter()
                now = draw.begin(text, (seed,), steps=drawing.steps, size=drawing.size)
                while now.index < now.steps:
                    now = draw.denoise(now)
                (picture,) = draw.decode(now)
                seconds = time.perf_counter() - begin
                file = pictures / f"{number:03}-{seed}.png"
                _save(picture, file)
                attempts.append(Attempt(prompt, seed, file, seconds))
                bar.update()
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"{_shown(model)} does not fit on {settings.device}: {error}",
            fix="add --text_to_image.eight_bit true, for all models, or free the device",
        ) from error
    finally:
        # The next model gets the memory of this one.
        draw = now = None  # type: ignore[assignment]
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return attempts


def _drawing(settings: GenerationSettings, model: str) -> TextToImageSettings:
    """The preset's settings; the shipped model keeps its own number of tokens."""
    length = settings.text_to_image.max_sequence_length
    shipped = preset("embedded").text_to_image.max_sequence_length
    if model == "embedded":
        length = shipped
    elif length == shipped:
        length = None
    return settings.text_to_image.model_copy(update={"max_sequence_length": length})


def _judge(settings: GenerationSettings, stages: LoadedStages, attempt: Attempt) -> Attempt:
    """Takes a picture to a scored object, through the stages of the miner."""
    task = TextTask(id="comparison", prompt=attempt.prompt, seed=attempt.seed)
    rung: Rung = settings.ladder[0]
    with Image.open(attempt.picture) as file:
        value: Any = torch.from_numpy(np.array(file)).to(settings.device)
    for step in route(stages_of(settings, rung.back_end), task, rung):
        if step.stage in _DRAWING:
            continue
        context = StepContext(task, rung, step.index)
        work = partial(stages.functions[step.stage], value, context)
        try:
            value = recovery.attempt(step.stage, work, stages.drop_caches)
        except GenerationError as error:
            why = printable(str(error), 300)
            if isinstance(value, Asset):
                return replace(attempt, unscored=why)
            return replace(attempt, score=0.0, problem=why)
    assert isinstance(value, Asset)
    assert value.score is not None
    return replace(attempt, score=value.score.value, parts=value.score.parts)


def _figures(attempts: Mapping[str, Sequence[Attempt]], out: Path) -> dict[str, Any]:
    means = {model: _by_prompt(rows, statistics.mean) for model, rows in attempts.items()}
    first = next(iter(means.values()))
    figures = {}
    for model, rows in attempts.items():
        both = [prompt for prompt in first if prompt in means[model]]
        ahead = [means[model][prompt] - first[prompt] for prompt in both]
        figures[model] = {
            "score": _mean(means[model].values()),
            "best": _mean(_by_prompt(rows, max).values()),
            "made": sum(not row.problem for row in rows),
            "unscored": sum(bool(row.unscored) for row in rows),
            "draw_s": statistics.median(row.draw_s for row in rows),
            "ahead": _mean(ahead),
            "ahead_error": statistics.stdev(ahead) / math.sqrt(len(ahead))
            if len(ahead) > 1
            else None,
            "attempts": [
                {
                    "prompt": row.prompt,
                    "seed": row.seed,
                    "picture": str(row.picture.relative_to(out)),
                    "score": row.score,
                    "parts": dict(row.parts or {}),
                    "problem": row.problem,
                    "unscored": row.unscored,
                    "draw_s": row.draw_s,
                }
                for row in rows
            ],
        }
    return figures


def _by_prompt(
    rows: Sequence[Attempt], together: Callable[[list[float]], float]
) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.score is not None:
            scores.setdefault(row.prompt, []).append(row.score)
    return {prompt: together(values) for prompt, values in scores.items()}


def _mean(values: Collection[float]) -> float | None:
    return statistics.mean(values) if values else None


def _picture_folder(out: Path, number: int, model: str) -> Path:
    folder = out / "pictures" / f"{number}-{re.sub('[^A-Za-z0-9._-]', '_', _shown(model))}"
    with _writing(out):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _save(picture: Tensor, file: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(png, "PNG", compress_level=1)
    with _writing(file):
        replace_file(file, png.getvalue())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{printable(str(path))} cannot be written: {reason(error)}",
            fix="name a folder that can be written with --out",
        ) from error


def _write(
    out: Path, figures: Mapping[str, Any], attempts: Mapping[str, Sequence[Attempt]]
) -> None:
    labels = _labels(attempts)
    cells = {
        labels[model]: [(row.prompt, row.picture, _verdict(row)) for row in rows]
        for model, rows in attempts.items()
    }
    text = json.dumps(figures, indent=1, ensure_ascii=False) + "\n"
    with _writing(out):
        replace_file(out / "comparison.json", text.encode())
        replace_file(out / "comparison.png", draw_sheet(cells))


def _verdict(attempt: Attempt) -> str:
    if attempt.problem:
        return "no object"
    return "not scored" if attempt.score is None else f"{attempt.score:.3f}"


def _show(figures: Mapping[str, Any], out: Path) -> None:
    console = Console(highlight=False)
    title = f"preset {figures['preset']}, scorer {figures['scorer']}, {figures['machine']}"
    columns = ("score", "best of seeds", "objects", "s / picture", "ahead of the first")
    table = Table(title=title)
    table.add_column("model", justify="left")
    for column in columns:
        table.add_column(column, justify="right")
    labels = _labels(figures["models"])
    for number, (model, row) in enumerate(figures["models"].items()):
        error = row["ahead_error"]
        ahead = _number(row["ahead"], "+.3f") + ("" if error is None else f" ± {error:.3f}")
        table.add_row(
            labels[model],
            _number(row["score"], ".3f"),
            _number(row["best"], ".3f"),
            f"{row['made']} of {len(row['attempts'])}",
            f"{row['draw_s']:.2f}",
            ahead if number else "",
        )
    console.print(table)
    console.print(
        "± is the standard error over the prompts. A scorer is not a validator: look at the sheet.",
        markup=False,
    )
    for model, row in figures["models"].items():
        if row["unscored"]:
            why = next(each["unscored"] for each in row["attempts"] if each["unscored"])
            console.print(
                f"{labels[model]}: objects without a score, which count in no mean: "
                f"{row['unscored']}; the first: {why}",
                markup=False,
            )
    for name in ("comparison.png", "comparison.json", "pictures"):
        console.print(printable(str(out / name)), markup=False, soft_wrap=True)


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _labels(models: Iterable[str]) -> dict[str, str]:
    """What sheet and table call models: their folders' names, with the path where two are alike."""
    names = {model: _shown(model) for model in models}
    alike = Counter(names.values())
    return {
        model: name if alike[name] == 1 else printable(model, 200) for model, name in names.items()
    }


def _shown(model: str) -> str:
    return printable(Path(model).name or model, 40)
