"""The tasks of a trial."""

import base64
import itertools
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from miner.mock_validator.records import record_name
from protocol.errors import SetupError

DEFAULT_PROMPTS = ("a blue cube", "a red sports car", "a detailed dragon statue")
_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class TrialTask:
    """One task in its wire form.

    Attributes:
        name: Stem of the files of its answer.
        kind: "text" or "image".
        shown: The text, or the name of the image file.
        wire: The text, or the base64 of the image file.
        id: A fresh UUID.
    """

    name: str
    kind: Literal["text", "image"]
    shown: str
    wire: str = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


def collect_tasks(
    prompts: Path | None, images: Path | None, count: int | None = None
) -> list[TrialTask]:
    """Returns the tasks of a trial: the prompts, then the images by name.

    Without either, there are three default prompts.

    Args:
        prompts: Text file with one prompt a line; empty lines and lines with # are skipped.
        images: Folder of image files.
        count: Length of the list, which is repeated or cut to it.

    Raises:
        SetupError: A file or folder cannot be read, or holds nothing to send.
    """
    sources: list[tuple[Literal["text", "image"], str, str]] = []
    try:
        if prompts is not None:
            lines = [line.strip() for line in prompts.read_text(encoding="utf-8").splitlines()]
            sources += [("text", line, line) for line in lines if line and line[0] != "#"]
        if images is not None:
            files = sorted(p for p in images.iterdir() if p.suffix.lower() in _IMAGE_SUFFIXES)
            sources += [
                ("image", file.name, base64.b64encode(file.read_bytes()).decode()) for file in files
            ]
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"the tasks cannot be read: {error}", fix="check --prompts and --images"
        ) from error
    if prompts is None and images is None:
        sources = [("text", prompt, prompt) for prompt in DEFAULT_PROMPTS]
    if not sources:
        raise SetupError(
            f"there is nothing to send in {prompts or images}",
            fix="write one prompt a line into the file of --prompts, or put PNG, JPEG or WebP "
            "files into the folder of --images",
        )
    chosen = itertools.islice(itertools.cycle(sources), count or len(sources))
    return [
        TrialTask(record_name(number, shown), kind, shown, wire)
        for number, (kind, shown, wire) in enumerate(chosen, start=1)
    ]
