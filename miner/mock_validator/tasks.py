"""The tasks of a trial."""

import base64
import codecs
import itertools
import re
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from miner.mock_validator.records import record_name
from protocol.errors import SetupError
from protocol.text import printable

DEFAULT_PROMPTS = ("a blue cube", "a red sports car", "a golden dragon statue")
MOST_PROMPT_BYTES = 64 * 2**20
"""Size of the largest prompts file."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # Before UTF-16, whose mark it begins with.
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile(r"\r\n|\r|\n")
_SHOWN_CHARACTERS = 1024
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
        prompts: Text file with one prompt a line; see `read_prompts`.
        images: Folder of image files.
        count: Length of the list, which is repeated or cut to it.

    Raises:
        SetupError: A file or folder cannot be read, or holds nothing to send.
    """
    sources: list[tuple[Literal["text", "image"], str, str]] = []
    try:
        if prompts is not None:
            sources += [
                ("text", printable(line, _SHOWN_CHARACTERS), line) for line in read_prompts(prompts)
            ]
        if images is not None:
            files = sorted(
                path
                for path in images.iterdir()
                if path.suffix.lower() in _IMAGE_SUFFIXES and not path.is_dir()
            )
            sources += [
                ("image", printable(file.name), base64.b64encode(file.read_bytes()).decode())
                for file in files
            ]
    except OSError as error:
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


def read_prompts(path: Path) -> list[str]:
    """Reads a text file with one prompt a line; empty lines and lines with # are skipped.

    It is UTF-8, or UTF-16 or UTF-32 with a byte order mark. Lines end as on any system.

    Raises:
        OSError: It cannot be read.
        SetupError: It is no such text; the first line that is not is named.
    """
    with path.open("rb") as file:
        data = file.read(MOST_PROMPT_BYTES + 1)
    if len(data) > MOST_PROMPT_BYTES:
        raise SetupError(
            f"{path} has more than {MOST_PROMPT_BYTES:,} bytes",
            fix="give --prompts a text file with one prompt a line",
        )
    mark, encoding = next(
        (each for each in _BYTE_ORDER_MARKS if data.startswith(each[0])), (b"", "utf-8")
    )
    content, problem = data[len(mark) :], ""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        text, problem = content[: error.start].decode(encoding), f"is not {encoding.upper()}"
    if "\0" in text:
        text, problem = text[: text.index("\0")], "holds a NUL character"
    if problem:
        number = len(_LINE_END.split(text))
        raise SetupError(
            f"line {number} of {path} {problem}",
            fix="save the file of --prompts as UTF-8, with one prompt a line",
        )
    # A file that was put together from several has marks inside.
    lines = [line.strip().strip("\ufeff").strip() for line in _LINE_END.split(text)]
    return [line for line in lines if line and line[0] != "#"]
