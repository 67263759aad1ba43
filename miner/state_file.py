"""Small JSON files that outlive the process: replaced in one step, set aside when damaged."""

from pathlib import Path
from typing import Generic, TypeVar

from loguru import logger
from pydantic import BaseModel, ValidationError

from protocol.files import replace_file

M = TypeVar("M", bound=BaseModel)


class StateFile(Generic[M]):
    """One file that holds one model.

    Args:
        path: The file.
        model: What it holds; a change of its layout changes its `version`.
        loses: What is lost when the file cannot be used, for the log.
    """

    def __init__(self, path: Path, model: type[M], *, loses: str) -> None:
        self.path = path
        self._model = model
        self._loses = loses

    def load(self) -> M | None:
        """Reads the file; None if there is none, or if it is damaged and was set aside.

        Raises:
            OSError: It cannot be read, or not be set aside.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._model.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            self.set_aside(f"is damaged or of another version ({where}: {first['msg']})")
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
