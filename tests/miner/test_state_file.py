"""Small files that outlive the process: replaced whole or not at all, set aside when damaged."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from loguru import logger
from pydantic import BaseModel, ConfigDict

from miner.state_file import StateFile


class Kept(BaseModel):
    """What the files of these tests hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[2] = 2
    names: tuple[str, ...] = ()
    seconds: float = 0.0


OLD, NEW = Kept(names=("a", "é"), seconds=1.5), Kept(names=("b",))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept.json"


@pytest.fixture
def file(path: Path) -> StateFile[Kept]:
    return StateFile(path, Kept, loses="the names")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)


def names_in(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_what_is_saved_is_loaded(file: StateFile[Kept], path: Path, warnings: list[str]) -> None:
    for value in (OLD, NEW):
        file.save(value)
        assert file.load() == value
    assert names_in(path.parent) == {"kept.json"}
    assert warnings == []


def test_without_a_file_there_is_nothing_to_load(
    file: StateFile[Kept], path: Path, warnings: list[str]
) -> None:
    assert file.load() is None
    assert names_in(path.parent) == set()
    assert warnings == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(
    file: StateFile[Kept],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    file.save(OLD)

    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(type(error)):
            file.save(NEW)
    assert file.load() == OLD
    assert names_in(path.parent) == {"kept.json"}


def test_the_new_file_is_on_the_disk_before_it_replaces_the_old_one(
    file: StateFile[Kept], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.save(OLD)
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def noted_sync(handle: int) -> None:
        done.append(f"fsync of {os.fstat(handle).st_size} bytes")
        sync(handle)

    def noted_replace(source: str, target: Path) -> None:
        assert Path(source).parent == path.parent, "it could not be replaced in one step"
        assert file.load() == OLD
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "replace", noted_replace)
    file.save(NEW)
    assert done == [f"fsync of {path.stat().st_size} bytes", "replace"]
    assert file.load() == NEW


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the whole file"),
        (b"\x00\xff\xfe", "the whole file"),
        (OLD.model_dump_json().encode()[:-5], "the whole file"),
        (b"[1, 2]", "the whole file"),
        (b'{"version": 1, "names": []}', "version"),
        (b'{"version": 2, "surprise": 1}', "surprise"),
        (b'{"version": 2, "seconds": "soon"}', "seconds"),
        (b'{"version": 2, "seconds": NaN}', "seconds"),
    ],
)
def test_a_damaged_file_or_one_of_another_version_is_set_aside_under_a_new_name(
    file: StateFile[Kept], path: Path, warnings: list[str], content: bytes, words: str
) -> None:
    for number in (1, 2, 3):
        path.write_bytes(content)
        assert file.load() is None
        assert not path.exists()
        assert path.with_name(f"kept.json.damaged-{number}").read_bytes() == content
        assert len(warnings) == number
        assert words in warnings[-1]
        assert (
            f"set aside as kept.json.damaged-{number}, starting without the names" in warnings[-1]
        )
    file.save(NEW)
    assert file.load() == NEW


def test_a_file_can_be_set_aside_for_another_reason(
    file: StateFile[Kept], path: Path, warnings: list[str]
) -> None:
    file.save(OLD)
    file.set_aside("belongs to somebody else")
    assert names_in(path.parent) == {"kept.json.damaged-1"}
    assert "kept.json belongs to somebody else; set aside" in warnings[0]


def test_a_file_that_cannot_be_read_is_an_error(path: Path) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        StateFile(path, Kept, loses="the names").load()


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        StateFile(tmp_path / "missing" / "kept.json", Kept, loses="the names").save(OLD)
