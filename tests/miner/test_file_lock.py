"""A file has one writer: the second one is told of the first, and the kernel ends a lock."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from loguru import logger

from miner.file_lock import FileLock, look
from protocol.errors import SetupError

HOLDS = """
import sys, time
from pathlib import Path
from miner.file_lock import FileLock
lock = FileLock(Path(sys.argv[1]), what="the log folder", flag="--log.dir")
print("locked", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "miner.lock"


def lock(path: Path) -> FileLock:
    return FileLock(path, what="the log folder logs", flag="--log.dir")


def held_by_another(path: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDS, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_second_one_is_told_which_process_has_it_and_what_to_do(path: Path) -> None:
    with held_by_another(path) as process:
        try:
            with pytest.raises(SetupError) as caught:
                lock(path)
            assert f"the log folder logs is in use by process {process.pid} since" in str(
                caught.value
            )
            assert f"a place of its own with --log.dir, or stop it with: kill {process.pid}" in str(
                caught.value
            )
            held, holder = look(path)
            assert held is True
            assert holder is not None
            assert (holder.pid, holder.host) == (process.pid, socket.gethostname())
        finally:
            process.kill()


def test_a_killed_process_has_no_lock_and_the_next_one_starts(path: Path) -> None:
    with held_by_another(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        held, holder = look(path)
        assert held is False
        assert holder is not None
        assert holder.pid == process.pid
    mine = lock(path)
    assert look(path)[0] is True
    mine.release()


def test_a_lock_that_is_released_can_be_taken_again(path: Path) -> None:
    for _ in range(2):
        lock(path).release()
    assert look(path)[0] is False


def test_without_a_lock_nothing_is_said(path: Path) -> None:
    assert look(path) == (None, None)


def test_a_copied_lock_says_nothing_of_its_process(path: Path) -> None:
    mine = lock(path)
    copy = path.with_name("copy.lock")
    shutil.copy(path, copy)
    held, holder = look(copy)
    assert held is None
    assert holder is not None
    assert holder.pid == os.getpid()
    mine.release()


def test_the_lock_of_another_machine_says_nothing_of_its_process(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "2026-01-01"}))
    held, holder = look(path)
    assert held is None
    assert holder is not None
    assert not holder.is_local


def test_a_process_of_another_machine_is_to_be_stopped_there(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"pid": 7, "host": "else\x1b[2Jwhere", "since": "2026-01-01"}))
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SetupError, match="process 7 on else") as caught:
            lock(path)
    assert "stop it on else" in str(caught.value)
    assert "kill" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff",
        b"[1]",
        b'{"pid": "7"}',
        b'{"pid": 7, "host": 3, "since": []}',
        b"[" * 5000,
        b'{"pid": 1' + b"0" * 10_000,
    ],
)
def test_a_lock_whose_words_are_damaged_still_locks(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert look(path) == (True, None)
        with pytest.raises(SetupError, match="in use by another process"):
            lock(path)
    lock(path).release()
    assert look(path)[1] is not None


def test_a_monitor_that_looks_keeps_no_miner_from_starting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir()
    path.touch()
    with path.open() as monitor:
        fcntl.flock(monitor, fcntl.LOCK_SH)

        def look_is_over(seconds: float) -> None:
            fcntl.flock(monitor, fcntl.LOCK_UN)

        monkeypatch.setattr("miner.file_lock.time.sleep", look_is_over)
        lock(path).release()


def test_a_lock_is_taken_again_when_its_folder_was_removed(path: Path) -> None:
    mine = lock(path)
    path.unlink()
    path.parent.rmdir()
    assert look(path) == (None, None)
    mine.renew()
    assert look(path)[0] is True
    mine.renew()
    mine.release()
    assert look(path)[0] is False


def test_a_lock_that_another_took_meanwhile_stays_the_other_ones(path: Path) -> None:
    mine = lock(path)
    path.unlink()
    other = lock(path)
    with pytest.raises(SetupError, match=f"in use by process {os.getpid()}"):
        mine.renew()
    other.release()
    mine.renew()
    mine.release()


def in_a_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file" / "miner.lock"


def at_a_folder(folder: Path) -> Path:
    (folder / "miner.lock").mkdir()
    return folder / "miner.lock"


@pytest.mark.parametrize("place", [in_a_file, at_a_folder])
def test_a_place_that_cannot_be_written_names_the_flag(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    with pytest.raises(SetupError, match=re.escape("--log.dir")) as caught:
        lock(place(tmp_path))
    assert str(tmp_path) in caught.value.problem


def test_a_file_system_without_locks_is_warned_of_and_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    warnings: list[str] = []
    sink = logger.add(lambda message: warnings.append(str(message)), level="WARNING")
    lock(path).release()
    logger.remove(sink)
    assert "no locks (No locks available)" in warnings[0]
    held, holder = look(path)
    assert held is None
    assert holder is not None


def test_a_lock_that_fails_otherwise_is_not_taken_for_held(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(SetupError, match="Input/output error"):
        lock(path)
