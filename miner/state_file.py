"""Small JSON files that outlive the process: replaced in one step, set aside when damaged."""

import os
import stat
from errno import EINVAL
from pathlib import Path
from typing import Generic, TypeVar

from loguru import logger
from pydantic import BaseModel, ValidationError

from protocol.files import replace_file
from protocol.text import printable

MOST_BYTES = 128 * 2**20
"""Size of the largest state: as many pulled images as there may be workers."""

MOST_COMMAS = 250_000
"""Commas in the largest state. A damaged file with more values could be wrong at each of them, and
to list a million errors takes a gigabyte."""

M = TypeVar("M", bound=BaseModel)


class StateFile(Generic[M]):
    """One file that holds one model.

    Args:
        path: The file.
        model: What it holds; a change of its layout changes its `version`.
        loses: What is lost when the file cannot be used, for the log.
        most_bytes: A larger file is damaged.
    """

    def __init__(
        self, path: Path, model: type[M], *, loses: str, most_bytes: int = MOST_BYTES
    ) -> None:
        self.path = path
        self._model = model
        self._loses = loses
        self._most_bytes = most_bytes

    def load(self) -> M | None:
        """Reads the file; None if there is none, or if it is damaged and was set aside.

        Raises:
            OSError: It cannot be read, or not be set aside.
        """
        try:
            data = self._read()
        except FileNotFoundError:
            return None
        if len(data) > self._most_bytes:
            self.set_aside(f"is larger than {self._most_bytes:,} bytes")
            return None
        if data.count(b",") > MOST_COMMAS:
            self.set_aside(f"has more than {MOST_COMMAS:,} commas")
            return None
        try:
            return self._model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = printable(".".join(str(part) for part in first["loc"])) or "the whole file"
            words = f"is damaged or of another version ({where}: {printable(first['msg'])})"
        self.set_aside(words)
        return None

    def save(self, value: M) -> None:
        """Replaces the file: after a crash it holds the old value or the new one.

        Raises:
            OSError: It cannot be written.
        """
        replace_file(self.path, value.model_dump_json().encode())

    def set_aside(self, reason: str) -> None:
        """Renames the file, so that nothing is lost and the next start finds none.

        Raises:
            OSError: It cannot be renamed.
        """
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.damaged-{number}")).exists():
            number += 1
        self.path.rename(aside)
        logger.warning(
            "{} {}; set aside as {}, starting without {}",
            self.path,
            reason,
            aside.name,
            self._loses,
        )

    def _read(self) -> bytes:
        """Returns the content, or one byte more than a sound file has."""
        # A pipe would hold the start until somebody writes into it, a device would never end.
        with open(
            self.path, "rb", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK)
        ) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(EINVAL, "not a plain file", str(self.path))
            return file.read(self._most_bytes + 1)
