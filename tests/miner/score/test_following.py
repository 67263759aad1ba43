"""Every line of a log is read once and in order, whatever happens to its file between looks."""

import bz2
import gzip
import json
import lzma
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from io import BytesIO
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


def test_a_file_that_was_cut_off_and_is_longer_again_is_read_from_the_start(
    log: Log,
) -> None:
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


def read_since(log: Log, since: float) -> list[int]:
    follower = Follower(log.path, history=True, since=since)
    numbers = [json.loads(line)["n"] for line in follower.look()]
    follower.close()
    return numbers


def set_aside(log: Log, how: str) -> None:
    for part in range(4):
        log.write(10)
        aside = log.rotate()
        if how == "packed" or (how == "mixed" and part % 2):
            aside.with_name(f"{aside.name}.gz").write_bytes(gzip.compress(aside.read_bytes()))
            aside.unlink()
    log.write(5)  # Lines 0-9, 11-20, 22-31, 33-42, and 44-48: a rotation takes a number.


@pytest.mark.parametrize("how", ["plain", "packed", "mixed"])
@pytest.mark.parametrize(("since", "first"), [(0, 0), (10.9, 0), (11, 11), (30, 22), (44, 44)])
def test_files_that_end_before_the_period_are_skipped(
    log: Log, how: str, since: float, first: int
) -> None:
    set_aside(log, how)
    numbers = read_since(log, 1e9 + since)
    assert numbers == [n for n in range(49) if n >= first and n not in (10, 21, 32, 43)]


def test_of_skipped_files_only_what_lasts_is_read_of_the_last_run(log: Log) -> None:
    def write(event: str) -> int:
        n = next(log.numbers)
        with log.path.open("a") as file:
            file.write(json.dumps({"event": event, "unix": 1e9 + n, "n": n}) + "\n")
        return n

    for event in ("miner_started", "state_changed", "earnings", "miner_stopped"):
        write(event)
    log.rotate()
    write("miner_stopped")
    started = write("miner_started")
    write("state_changed")
    log.write(1000)
    log.rotate()
    write("earnings")
    state = write("state_changed")
    earned = write("earnings")
    log.write(1000)
    log.rotate()
    log.write(2)
    last = next(log.numbers) - 1
    assert read_since(log, 1e12) == [started, state, earned, last - 1, last]


def test_a_skipped_file_that_is_cut_off_says_what_it_can(log: Log) -> None:
    log.path.write_text('{"event": "state_changed", "unix": 1, "n": -1}\n')
    log.write(5000)
    aside = log.rotate()
    aside.with_name(f"{aside.name}.gz").write_bytes(gzip.compress(aside.read_bytes())[:-9000])
    aside.unlink()
    log.write(1)
    assert read_since(log, 1e12) == [-1, 5001]


def _zstd_in_frames(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor()
    return packer.compress(data[: len(data) // 2]) + packer.compress(data[len(data) // 2 :])


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".zst", _zstd_in_frames),
        (".xz", lambda d: lzma.compress(d[: len(d) // 2]) + lzma.compress(d[len(d) // 2 :])),
        (".gz", lambda d: gzip.compress(d[: len(d) // 2]) + gzip.compress(d[len(d) // 2 :])),
    ],
)
def test_a_packed_file_in_several_parts_is_read_to_its_end(
    log: Log, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    log.write(1000)
    aside = log.rotate()
    aside.with_name(aside.name + suffix).write_bytes(pack(aside.read_bytes()))
    aside.unlink()
    assert read_since(log, 0.0) == list(range(1000))


def _bomb(kind: str) -> bytes:
    """256 MiB of the letter a, as a file of some KB; without a line feed."""
    block, count = b"a" * 2**20, 256
    if kind == ".xz":
        xz = lzma.LZMACompressor(preset=0)
        return b"".join([xz.compress(block) for _ in range(count)] + [xz.flush()])
    if kind == ".zst":
        zst = zstandard.ZstdCompressor().compressobj()
        return b"".join([zst.compress(block) for _ in range(count)] + [zst.flush()])
    file = BytesIO()
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1) as packed:
        for _ in range(count):
            packed.write(block)
    return file.getvalue()


@pytest.mark.parametrize("kind", [".gz", ".zst", ".xz"])
def test_a_file_that_unpacks_to_much_more_takes_little_memory(log: Log, kind: str) -> None:
    log.write(1)
    log.path.with_name(f"score.jsonl.1{kind}").write_bytes(_bomb(kind))
    follower = Follower(log.path, history=True)
    tracemalloc.start()
    lines = list(follower.look())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    follower.close()
    assert peak < 32 * 2**20
    assert [len(line) < 200 for line in lines] == [True, True]
    assert json.loads(lines[-1])["n"] == 0


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (
            ".xz",
            lambda d: lzma.compress(
                d, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 2**29}]
            ),
        ),
        (
            ".zst",
            lambda d: (
                zstandard.ZstdCompressor(
                    compression_params=zstandard.ZstdCompressionParameters(window_log=28)
                )
                .compressobj()
                .compress(d)
            ),
        ),
    ],
)
def test_a_file_that_asks_for_much_memory_is_damaged(
    log: Log, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    log.write(1)
    aside = log.path.with_name(f"score.jsonl.1{suffix}")
    aside.write_bytes(pack(b'{"event": "x", "unix": 1, "n": 7}\n' * 100_000))
    follower = Follower(log.path, history=True)
    *damage, last = follower.look()
    follower.close()
    assert damage == ["\ufffd"]
    assert json.loads(last)["n"] == 0
