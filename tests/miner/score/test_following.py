"""Every line of a log is read once and in order, whatever happens to its file between looks."""

import bz2
import gzip
import json
import lzma
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import IO

import pytest
import zstandard

from miner.score.following import LONGEST_LINE, Follower


class Log:
    """A log whose lines are numbered, with a reader that looks now and then."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "score.jsonl"
        self.numbers = count()
        self.follower = Follower(self.path)

    def write(self, lines: int = 3) -> None:
        with self.path.open("a") as file:
            for _ in range(lines):
                n = next(self.numbers)
                file.write(json.dumps({"event": "answered", "unix": 1e9 + n, "n": n}) + "\n")

    def rotate(self, name: str | None = None) -> Path:
        """Sets the file aside as the miner does, or under another name."""
        name = name or f"score.2026-01-01_00-00-{next(self.numbers):02}_000000.jsonl"
        return self.path.rename(self.path.with_name(name))

    def look(self) -> list[int]:
        return [json.loads(line)["n"] for line in self.follower.look()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.follower.close()


def test_a_look_yields_what_was_written_since_the_last_one(log: Log) -> None:
    assert log.look() == []  # It does not exist yet.
    log.write(2)
    assert log.look() == [0, 1]
    assert log.look() == []
    log.write(1)
    assert log.look() == [2]


def test_lines_before_and_after_a_rotation_are_read_once(log: Log) -> None:
    log.write(2)
    assert log.look() == [0, 1]
    log.write(2)
    log.rotate()
    log.write(2)
    assert log.look() == [2, 3, 5, 6]
    log.write(1)
    assert log.look() == [7]


def test_a_file_renamed_before_the_next_one_is_begun_loses_nothing(log: Log) -> None:
    log.write(1)
    log.look()
    log.write(1)
    log.rotate()
    assert log.look() == [1]
    assert log.look() == []
    log.write(1)
    assert log.look() == [3]


def test_a_line_written_while_the_file_is_read_and_renamed_is_read(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.write(1)
    is_in_place = log.follower._is_in_place

    def renamed_meanwhile(file: IO[bytes]) -> bool:
        monkeypatch.undo()
        log.write(1)
        log.rotate()
        log.write(1)
        return is_in_place(file)

    monkeypatch.setattr(log.follower, "_is_in_place", renamed_meanwhile)
    assert log.look() == [0, 1, 3]


def test_several_rotations_between_two_looks_are_read_in_order(log: Log) -> None:
    log.write(1)
    assert log.look() == [0]
    for _ in range(4):
        log.write(2)
        log.rotate()
    log.write(1)
    assert log.look() == [1, 2, 4, 5, 7, 8, 10, 11, 13]


def test_several_rotations_while_there_is_no_file_are_read_in_order(log: Log) -> None:
    log.write(1)
    log.look()
    log.rotate()
    assert log.look() == []
    for _ in range(2):
        log.write(1)
        log.rotate()
    assert log.look() == [2, 4]


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: zstandard.ZstdCompressor().compress(data)),
    ],
)
def test_files_that_were_compressed_between_two_looks_are_read_once(
    log: Log, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    log.write(1)
    assert log.look() == [0]
    log.write(1)
    for _ in range(2):
        aside = log.rotate()
        aside.with_name(aside.name + suffix).write_bytes(pack(aside.read_bytes()))
        aside.unlink()
        log.write(1)
    assert log.look() == [1, 3, 5]
    assert log.look() == []


def test_the_names_of_logrotate_are_known(log: Log) -> None:
    log.write(1)
    log.look()
    log.write(1)
    log.rotate("score.jsonl.1")
    log.write(1)
    os.rename(log.path.with_name("score.jsonl.1"), log.path.with_name("score.jsonl.2"))
    log.rotate("score.jsonl.1")
    log.write(1)
    log.rotate("score.jsonl-20260101")
    log.write(1)
    assert log.look() == [1, 2, 3, 4]


def test_a_file_that_is_copied_and_cut_off_loses_nothing(log: Log) -> None:
    log.write(2)
    log.look()
    log.write(2)
    shutil.copy(log.path, log.path.with_name("score.jsonl.1"))
    os.truncate(log.path, 0)
    log.write(1)
    assert log.look() == [2, 3, 4]
    assert log.look() == []


def test_a_file_that_is_cut_off_and_has_grown_beyond_its_old_size_is_begun_anew(log: Log) -> None:
    log.write(1)
    log.look()
    os.truncate(log.path, 0)
    log.write(5)
    assert log.look() == [1, 2, 3, 4, 5]


def test_a_deleted_file_and_a_new_one_of_that_name_are_two_files(log: Log) -> None:
    log.write(2)
    log.look()
    log.write(1)
    log.path.unlink()
    log.write(2)  # The file system may give it the number of the old one.
    assert log.look() == [2, 3, 4]


def test_files_set_aside_before_the_first_look_are_read_only_if_asked_for(log: Log) -> None:
    log.write(2)
    log.rotate("score.jsonl.9")
    log.write(1)
    packed = log.path.with_name("score.2026-01-01_00-00-00_000000.jsonl.gz")
    packed.write_bytes(gzip.compress(log.rotate().read_bytes()))
    log.write(2)
    assert log.look() == [4, 5]
    log.follower.close()
    log.follower = Follower(log.path, history=True)
    assert log.look() == [0, 1, 2, 4, 5]


def test_history_is_followed_on(log: Log) -> None:
    log.write(1)
    log.rotate()
    log.write(1)
    log.follower = Follower(log.path, history=True)
    assert log.look() == [0, 2]
    log.rotate()
    log.write(1)
    assert log.look() == [4]


@pytest.mark.parametrize("lines", [1, 100])
@pytest.mark.parametrize("name", ["score.jsonl.bak", "score.jsonl~", "score.jsonl.1.gz"])
def test_a_copy_of_the_file_that_is_written_is_not_read_beside_it(
    log: Log, name: str, lines: int
) -> None:
    log.write(lines)
    data = log.path.read_bytes()
    copy = log.path.with_name(name)
    copy.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    log.write(2)
    log.follower = Follower(log.path, history=True)
    assert log.look() == list(range(lines + 2))


def test_copies_that_somebody_makes_are_not_read_and_hide_nothing(log: Log) -> None:
    log.follower = Follower(log.path, history=True)
    for name in ("score.jsonl.bak", "score.jsonl.1.orig", "score.notes.jsonl", "score.jsonl~"):
        log.write(20)
        shutil.copy(log.path, log.path.with_name(name))
        log.write(2)
        aside = log.rotate()
        aside.with_name(f"{aside.name}.gz").write_bytes(gzip.compress(aside.read_bytes()))
        aside.unlink()
    log.write(1)
    # Every rotation takes a number.
    assert log.look() == [n for n in range(93) if n % 23 != 22]


def test_half_a_line_waits_for_its_other_half(log: Log) -> None:
    log.path.write_text('{"n": ')
    assert log.look() == []
    with log.path.open("a") as file:
        file.write("7}\n")
    assert log.look() == [7]


def test_half_a_line_at_the_end_of_a_file_set_aside_is_a_line_of_its_own(log: Log) -> None:
    log.path.write_text('{"n": 0}\n{"n": ')
    assert log.look() == [0]
    log.rotate()
    log.path.write_text('{"n": 1}\n')
    assert list(log.follower.look()) == ['{"n": ', '{"n": 1}']


def test_a_line_without_end_costs_no_memory_and_spoils_no_other(log: Log) -> None:
    with log.path.open("wb") as file:
        for _ in range(4 * LONGEST_LINE // 2**16):
            file.write(b"x" * 2**16)
        file.write(b'\n{"n": 1}\n')
    long, short = log.follower.look()
    assert len(long) < 200
    assert "\ufffd" in long
    assert short == '{"n": 1}'


def test_a_compressed_file_that_is_damaged_gives_what_it_has(log: Log) -> None:
    log.write(2000)
    sound = log.path.read_bytes()
    log.path.write_bytes(gzip.compress(sound)[:-4000])
    *lines, end = log.follower.look()
    assert 0 < len(lines) < 2000
    assert [json.loads(line)["n"] for line in lines[:-1]] == list(range(len(lines) - 1))
    assert end == "\ufffd"


def test_a_pipe_of_that_name_does_not_hold_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "score.jsonl")
    os.mkfifo(tmp_path / "score.jsonl.1")
    follower = Follower(tmp_path / "score.jsonl", history=True)
    assert list(follower.look()) == []
    follower.close()
