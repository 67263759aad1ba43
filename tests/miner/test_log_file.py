"""Files of lines: no line is torn, doubled or lost, whatever is done to the file or the disk."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from miner.log_file import LineWriter, RotatingFile
from miner.problems import Problems

NOW = 1769860800.25
LIMIT_S = 10.0


class Told(Problems):
    """Lets a test wait until a problem begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def report(self, about: str, sentence: str) -> None:
        super().report(about, sentence)
        self.begun.set()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "score.jsonl"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), format="{level} {message}")
    yield lines
    logger.remove(sink)


def file_at(path: Path, *, max_bytes: int = 2**20, keep: int = 3) -> RotatingFile:
    return RotatingFile(path, max_bytes=max_bytes, keep=keep, clock=lambda: NOW)


def full_disk(path: Path) -> None:
    """Makes the path a file that takes nothing: ENOSPC, as on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")


def test_a_deleted_file_comes_back_with_the_next_line(path: Path) -> None:
    file = file_at(path)
    file.append(b"one\n")
    path.unlink()
    file.append(b"two\n")
    assert path.read_bytes() == b"two\n"
    file.close()


def test_a_deleted_folder_comes_back_with_the_next_line(path: Path) -> None:
    file = file_at(path)
    file.append(b"one\n")
    path.unlink()
    path.parent.rmdir()
    file.append(b"two\n")
    assert path.read_bytes() == b"two\n"
    file.close()


def test_a_file_that_was_renamed_gets_no_more_lines(path: Path) -> None:
    file = file_at(path)
    file.append(b"one\n")
    path.rename(path.with_name("score.jsonl.1"))
    file.append(b"two\n")
    assert path.read_bytes() == b"two\n"
    assert path.with_name("score.jsonl.1").read_bytes() == b"one\n"
    file.close()


def test_a_file_that_was_cut_off_goes_on_at_its_end(path: Path) -> None:
    file = file_at(path)
    file.append(b"one\n")
    os.truncate(path, 0)
    file.append(b"two\n")
    assert path.read_bytes() == b"two\n"
    file.close()


@pytest.mark.parametrize("end", [b'{"event": "answ', b"\0\0\0\0"])
def test_half_a_line_of_a_crash_does_not_take_the_next_one(path: Path, end: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(b"one\n" + end)
    file = file_at(path)
    file.append(b"two\n")
    file.append(b"three\n")
    assert path.read_bytes() == b"one\n" + end + b"\ntwo\nthree\n"
    file.close()


def test_old_files_beyond_the_number_kept_are_deleted_and_no_others(path: Path) -> None:
    file = file_at(path, max_bytes=10, keep=2)
    path.parent.mkdir()
    others = [path.with_name(name) for name in ("score.notes.jsonl", "miner.log", "score.jsonl.1")]
    packed = path.with_name("score.2026-01-01_00-00-00_000000.jsonl.gz")
    for other in (*others, packed):
        other.write_bytes(b"")
    for n in range(6):
        file.append(b"line %d 89\n" % n)
    names = sorted(entry.name for entry in path.parent.iterdir())
    aside = [name for name in names if re.fullmatch(r"score\.2026-01-31_.*\.jsonl", name)]
    contents = [path.with_name(name).read_bytes() for name in aside]
    assert contents == [b"line 3 89\n", b"line 4 89\n"]
    assert path.read_bytes() == b"line 5 89\n"
    assert all(other.exists() for other in others)
    assert not packed.exists()
    file.close()


def test_a_line_larger_than_a_file_may_be_is_written_all_the_same(path: Path) -> None:
    file = file_at(path, max_bytes=4)
    file.append(b"a long line\n")
    file.append(b"b\n")
    assert path.read_bytes() == b"b\n"
    file.close()


FULL = """
import resource, sys
from pathlib import Path
from miner.log_file import RotatingFile
file = RotatingFile(Path(sys.argv[1]), max_bytes=2**20, keep=3)
file.append(b"a" * 99 + b"\\n")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (150, hard))
try:
    file.append(b"b" * 99 + b"\\n")
except OSError as error:
    print(Path(sys.argv[1]).stat().st_size, error.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
file.append(b"c" * 99 + b"\\n")
"""


def test_a_disk_that_takes_half_a_line_keeps_nothing_of_it(path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "100 File too large\n"
    assert path.read_bytes() == b"a" * 99 + b"\n" + b"c" * 99 + b"\n"


def test_lines_wait_for_a_full_disk_and_are_written_when_it_is_back(
    path: Path, logged: list[str]
) -> None:
    full_disk(path)
    problems = Told()
    writer = LineWriter(file_at(path), problems, most_bytes=1000, retry_s=0.01)
    for n in range(5):
        writer.put(b"line %d\n" % n)
    assert problems.begun.wait(LIMIT_S)
    assert "score.jsonl cannot be written: No space left on device" in problems.sentences[0]
    assert not writer.flush(0.1)
    path.unlink()
    assert writer.flush(LIMIT_S)
    assert writer.close() == 0
    assert path.read_bytes() == b"".join(b"line %d\n" % n for n in range(5))
    assert problems.sentences == []
    begin, end = logged
    assert begin.startswith("ERROR")
    assert "is written again" in end


def test_a_removed_folder_that_cannot_be_made_again_costs_no_line(path: Path) -> None:
    problems = Told()
    writer = LineWriter(file_at(path), problems, most_bytes=1000, retry_s=0.01)
    writer.put(b"one\n")
    assert writer.flush(LIMIT_S)
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file in its place")
    writer.put(b"two\n")
    assert problems.begun.wait(LIMIT_S)
    path.parent.unlink()
    assert writer.flush(LIMIT_S)
    assert path.read_bytes() == b"two\n"
    writer.close()


def test_what_waits_is_bounded_and_what_is_lost_is_counted(path: Path) -> None:
    full_disk(path)
    problems, lost = Told(), []
    writer = LineWriter(
        file_at(path),
        problems,
        most_bytes=70,
        on_lost=lambda count, reason: lost.append((count, reason)),
        retry_s=0.01,
    )
    for n in range(30):
        writer.put(b"line %02d\n" % n)
    assert problems.begun.wait(LIMIT_S)
    path.unlink()
    assert writer.flush(LIMIT_S)
    assert writer.close() == 0
    kept = path.read_bytes().splitlines()
    assert kept[-1] == b"line 29"
    ((count, reason),) = lost
    assert count + len(kept) == 30
    assert 7 <= len(kept) <= 10
    assert reason == "No space left on device"


def test_a_line_is_in_the_file_when_its_writer_goes_on(path: Path) -> None:
    writer = LineWriter(file_at(path), Problems(), most_bytes=1000)
    writer.put(b"one\n", wait_s=LIMIT_S)
    assert path.read_bytes() == b"one\n"
    writer.close()


def test_nobody_waits_for_a_disk_that_hangs(path: Path) -> None:
    released, writing = threading.Event(), threading.Event()

    class Hanging(RotatingFile):
        def append(self, line: bytes) -> None:
            writing.set()
            released.wait()
            super().append(line)

    hanging = Hanging(path, max_bytes=2**20, keep=3)
    writer = LineWriter(hanging, Problems(), most_bytes=1000)

    def put() -> None:
        for _ in range(100):
            writer.put(b"x\n", wait_s=0.01)

    waits = threading.Thread(target=put)
    waits.start()
    waits.join(0.5)  # Once, not a hundred times.
    assert not waits.is_alive()
    assert writing.is_set()
    assert writer.stuck_s > 0.0
    assert writer.close(limit_s=0.01) == 100
    released.set()
    assert writer.flush(LIMIT_S)
    assert path.read_bytes() == b"x\n" * 100


def test_closing_writes_what_waits_and_counts_what_a_full_disk_costs(path: Path) -> None:
    writer = LineWriter(file_at(path), Problems(), most_bytes=2**20)
    for _ in range(1000):
        writer.put(b"x\n")
    assert writer.close() == 0
    assert path.read_bytes() == b"x\n" * 1000

    other = path.with_name("other.jsonl")
    full_disk(other)
    problems = Told()
    writer = LineWriter(file_at(other), problems, most_bytes=2**20, retry_s=60.0)
    for _ in range(3):
        writer.put(b"x\n")
    assert problems.begun.wait(LIMIT_S)
    assert writer.close() == 3


def test_a_fault_of_the_writer_itself_keeps_its_lines(path: Path) -> None:
    class Broken(RotatingFile):
        broken = True

        def append(self, line: bytes) -> None:
            if self.broken:
                raise RuntimeError("a fault")
            super().append(line)

    file, problems = Broken(path, max_bytes=2**20, keep=3), Told()
    writer = LineWriter(file, problems, most_bytes=1000, retry_s=0.01)
    writer.put(b"one\n")
    assert problems.begun.wait(LIMIT_S)
    assert "RuntimeError('a fault')" in problems.sentences[0]
    file.broken = False
    assert writer.flush(LIMIT_S)
    assert path.read_bytes() == b"one\n"
    writer.close()
