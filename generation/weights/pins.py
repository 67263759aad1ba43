"""The files that this version expects of its models: commits, sizes and SHA-256, as data."""

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from protocol.documents import DocumentError, read_json
from protocol.files import replace_file
from protocol.text import printable

PINS = Path(__file__).with_name("pins.json")
"""Shipped with the package; `python -m scripts.fetch_models --pin FILE` writes it."""


def inside(name: str) -> str:
    """Returns the name of a file below a model's folder, if it is one.

    Raises:
        ValueError: It is absolute, leads upwards, or is none at all.
    """
    parts = PurePosixPath(name).parts
    plain = "/".join(parts) == name and "\\" not in name and "\0" not in name
    if not parts or ".." in parts or not plain:
        raise ValueError(f"{printable(repr(name), 80)} is no plain path inside the model's folder")
    return name


class LockedFile(BaseModel):
    """One file.

    Attributes:
        size: In bytes.
        sha256: In hexadecimal.
        licence: Its own licence, as an SPDX identifier, where the model's files differ in theirs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    licence: str | None = None


class LockedModel(BaseModel):
    """One model at one revision.

    Attributes:
        revision: Commit of the repository, or the address of a single file.
        licence: Licence of the weights, as an SPDX expression.
        files: By path inside the model's folder. A lock file holds every file that was downloaded,
            pins hold those that are known beforehand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    licence: str
    files: dict[Annotated[str, AfterValidator(inside)], LockedFile]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1]
    models: dict[str, LockedModel]


def read_models(file: Path) -> dict[str, LockedModel]:
    """Reads a lock file or pins; both have one format.

    Returns:
        Models by name; none if there is no such file.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is not such a document; the message says why and where.
    """
    try:
        return _Document.model_validate(read_json(file)).models
    except DocumentError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return {}
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from error
        raise ValueError(error.reason) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ValueError(f"{printable(where, 120)}: {first['msg']}") from error


def write_models(file: Path, models: Mapping[str, LockedModel]) -> None:
    """Writes a lock file or pins, models and files in the order of their names.

    Raises:
        OSError: It cannot be written.
    """
    ordered = {name: models[name].model_dump(exclude_none=True) for name in sorted(models)}
    for model in ordered.values():
        model["files"] = dict(sorted(model["files"].items()))
    content = json.dumps({"version": 1, "models": ordered}, indent=1)
    replace_file(file, f"{content}\n".encode())


@cache
def shipped_pins() -> Mapping[str, LockedModel]:
    """The pins of this version, by the name of the model.

    Raises:
        OSError: The installation lacks them, so that nothing would be pinned.
    """
    PINS.stat()
    return read_models(PINS)


def add_pins(file: Path, lock: Mapping[str, LockedModel], names: Iterable[str]) -> None:
    """Replaces the pins of some models by what a lock file says of them, and keeps the others.

    Args:
        file: The pins; made where it does not exist.
        lock: Models as they were downloaded.
        names: The models to pin.

    Raises:
        OSError: The file cannot be read or written.
        ValueError: It holds something else than pins.
    """
    write_models(file, read_models(file) | {name: lock[name] for name in names})
