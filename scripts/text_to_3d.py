"""Makes 3D objects from words: `python -m scripts.text_to_3d "a red car" --out car.spz`.

See `TextTo3DSettings` for what it writes, and docs/tools.md for examples.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import CliPositionalArg

from miner.mock_validator.tasks import read_prompts
from miner.settings.model import ANY_NAME
from protocol.errors import SetupError
from protocol.tasks import parse_task
from protocol.text import printable
from scripts.making.command import MakingSettings, Source, run
from scripts.making.files import name_of, reason


class TextTo3DSettings(MakingSettings):
    """Make 3D objects from words.

    Exit status: 0 all were made, 1 one was not, 2 a wrong argument or an unusable file.
    """

    prompt: CliPositionalArg[tuple[str, ...]] = ()
    """What to make, an object per argument: "a red car" "a blue mug"."""
    prompts: Annotated[Path | None, ANY_NAME] = None
    """Text file with further prompts, one a line."""
    candidates: Annotated[int, Field(ge=1, le=1000)] = 1
    """Objects made of each prompt, each with a seed of its own; the one with the best score is
    kept."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the objects and returns the exit status."""
    return run(TextTo3DSettings, _sources, "scripts.text_to_3d", arguments)


def _sources(config: TextTo3DSettings) -> list[Source]:
    prompts = list(config.prompt)
    if config.prompts is not None:
        try:
            prompts += read_prompts(config.prompts)
        except OSError as error:
            raise SetupError(
                f"cannot read {printable(str(config.prompts))}: {reason(error)}",
                fix="give --prompts a text file with one prompt a line",
            ) from None
    if not prompts:
        raise SetupError("there is no prompt", fix='say what to make, such as "a red car"')
    return [
        Source(
            printable(prompt),
            name_of(prompt),
            parse_task(kind="text", task_id="", prompt=prompt, seed=config.seed),
            config.candidates,
        )
        for prompt in prompts
    ]


if __name__ == "__main__":
    sys.exit(main())
