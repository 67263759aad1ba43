"""Compares text-to-image models by what becomes of their pictures.

`python -m scripts.compare_models klein schnell --preset gpu24 --prompts prompts.txt`; see
`CompareSettings` for what it prints and writes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import CliPositionalArg

from generation.errors import EngineDead
from generation.weights.sources import FLUX_NAMES
from miner.interpreter import program_name
from miner.mock_validator.tasks import read_prompts
from miner.settings.generation import GeneratingSettings
from miner.settings.model import ANY_NAME
from miner.settings.reader import read_settings
from miner.surroundings import settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError, TaskError
from protocol.tasks import TextTask, parse_task
from protocol.text import printable
from scripts.making.files import reason

DONE, NOT_DONE, WRONG, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

EMBEDDED = "embedded"
"""Names the shipped model, beside the short names."""

PROMPTS = (
    "a blue cube",
    "a red sports car",
    "a golden dragon statue",
    "a wooden chair with a striped cushion",
    "a small stone house with a green door",
    "a ripe pineapple",
    "a medieval iron helmet",
    "a potted cactus with pink flowers",
)


class CompareSettings(GeneratingSettings):
    """Draw the same prompts with several text-to-image models, and score what becomes of them.

    Each picture is cut out, lifted and scored as in the miner, with the preset's scorer. Prints a
    table, and writes every picture, every score and a sheet of the first pictures. Exit status: 0
    done, 1 a model cannot be loaded or the device is lost, 2 a wrong argument or an unusable file.
    """

    model: CliPositionalArg[tuple[str, ...]] = ()
    """The models, two or more: klein, schnell, embedded, or folders in the layout of diffusers'
    pipelines."""
    prompts: Annotated[Path | None, ANY_NAME] = None
    """Text file with one prompt a line, each drawn once; eight prompts of ours if not given."""
    seeds: Annotated[int, Field(ge=1, le=1000)] = 2
    """Pictures of each prompt by each model."""
    out: Annotated[Path, ANY_NAME] = Path("comparison")
    """Folder for comparison.json, comparison.png and the pictures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares the models and returns the exit status."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED


def _main(arguments: Sequence[str] | None) -> int:
    settle_terminal()
    try:
        with starting_up():
            config = read_settings(
                CompareSettings,
                prog=program_name("scripts.compare_models"),
                env_prefix="MINER",
                argv=arguments,
            )
        prompts = _prompts(config.prompts)
        _check_models(config.model)
    except SetupError as error:
        tell(error)
        return WRONG
    try:
        settle()
        from scripts.making.comparison import compare

        compare(
            config.generation,
            config.model,
            prompts,
            seeds=config.seeds,
            out=config.out,
            models_dir=config.models.dir,
        )
    except SetupError as error:
        tell(error)
        return NOT_DONE
    except EngineDead as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return NOT_DONE
    return DONE


def _prompts(file: Path | None) -> Sequence[str]:
    if file is None:
        return PROMPTS
    try:
        prompts = read_prompts(file)
    except OSError as error:
        raise SetupError(
            f"cannot read {printable(str(file))}: {reason(error)}",
            fix="give --prompts a text file with one prompt a line",
        ) from None
    if not prompts:
        raise SetupError(
            f"{printable(str(file))} holds no prompt", fix="write one prompt a line into it"
        )
    # Each once: the standard error takes prompts as independent.
    return list(dict.fromkeys(_checked(prompt, number) for number, prompt in enumerate(prompts, 1)))


def _checked(prompt: str, number: int) -> str:
    try:
        task = parse_task(kind="text", task_id="", prompt=prompt)
    except TaskError as error:
        raise SetupError(
            f"prompt {number} of --prompts is none that a task can have: {error}",
            fix="correct that line",
        ) from None
    assert isinstance(task, TextTask)
    return task.prompt


def _check_models(models: Sequence[str]) -> None:
    known = ", ".join((*FLUX_NAMES.models, EMBEDDED))
    if len(models) < 2 or len(set(models)) < len(models):
        raise SetupError(
            "a comparison takes at least two different models, got "
            f"{printable(' '.join(models))!r}",
            fix=f"name two of {known}, or folders of models",
        )
    for model in models:
        if model in FLUX_NAMES.models or model == EMBEDDED:
            continue
        if not (Path(model) / "model_index.json").is_file():
            raise SetupError(
                f"{printable(model)!r} is neither a known model nor a folder with a "
                "model_index.json",
                fix=f"name two of {known}, or folders of models",
            )


if __name__ == "__main__":
    sys.exit(main())
