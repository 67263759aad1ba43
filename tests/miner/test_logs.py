"""The program's own log: a disk or a terminal that takes nothing stops nobody and is told once."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from loguru import logger

from miner.logs import close_logs, configure_logs
from miner.problems import Problems


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    close_logs()


def test_lines_go_to_the_terminal_and_into_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("INFO", tmp_path / "logs")
    logger.info("hello {}", "there")
    logger.debug("not shown")
    close_logs()
    written = (tmp_path / "logs" / "miner.log").read_text()
    assert "hello there\n" in written
    assert "not shown" not in written
    assert "hello there" in capsys.readouterr().err


def test_a_full_disk_is_told_once_and_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "miner.log").symlink_to("/dev/full")
    problems = Problems()
    configure_logs("INFO", tmp_path, problems=problems)
    for n in range(20):
        logger.info("line {}", n)
    while not problems.sentences:
        logger.info("more")
    (tmp_path / "miner.log").unlink()
    while problems.sentences:
        os.sched_yield()
    close_logs()
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert shown.count("No space left on device") == 1
    assert shown.count("miner.log is written again") == 1
    written = (tmp_path / "miner.log").read_text()
    assert [f"line {n}\n" in written for n in range(20)] == [True] * 20


class Broken(io.StringIO):
    def write(self, text: str) -> NoReturn:
        raise OSError(28, "No space left on device")


def closed_stream() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("broken", [Broken(), closed_stream(), None])
def test_a_terminal_that_takes_nothing_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: io.StringIO | None
) -> None:
    configure_logs("INFO", tmp_path)
    monkeypatch.setattr(sys, "stderr", broken)
    logger.info("hello")
    close_logs()
    assert "hello" in (tmp_path / "miner.log").read_text()


def test_a_pipe_that_nobody_reads_stops_nobody_and_gets_every_line_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as stream, open(reading, "rb") as pipe:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logs("INFO", tmp_path)
        started = time.monotonic()
        for n in range(1000):
            logger.info("line {} {}", n, "x" * 200)  # A pipe takes 64 KiB.
        assert time.monotonic() - started < 10.0
        shown = b""
        while b"line 999 " not in shown:
            shown += pipe.read1()
        assert [b"line %d " % n in shown for n in range(1000)] == [True] * 1000
        close_logs()
    assert "line 999 " in (tmp_path / "miner.log").read_text()


STUCK = """
import sys
from loguru import logger
from miner.logs import close_logs, configure_logs
configure_logs("INFO")
for n in range(1000):
    logger.info("x" * 200)
close_logs()
sys.stderr.flush()
sys.exit(7)
"""


def test_a_process_ends_though_nobody_reads_its_pipe() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stderr=subprocess.PIPE) as process:
        assert process.wait(60.0) == 7


@pytest.mark.parametrize("text", ["<red>x</red>", "{0} {x}", "</>", "\\", "%s", "\ud800"])
def test_foreign_text_is_no_markup_and_no_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    configure_logs("INFO", tmp_path)
    logger.warning("{}", text)
    logger.opt(exception=ValueError(text)).error("failed: {}", text)
    close_logs()
    shown = capsys.readouterr().err
    assert "Logging error" not in shown
    escaped = text.encode(errors="backslashreplace").decode()
    assert f"failed: {escaped}\n" in (tmp_path / "miner.log").read_text()
    assert f"failed: {escaped}\n" in shown


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x1b]0;title\x07", "a\rb", "\u202eb", "\x9b2J", "\x00"]
)
def test_what_an_exception_quotes_moves_no_cursor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    configure_logs("INFO", tmp_path)
    logger.opt(exception=ValueError(text)).error("failed: {}", text)
    close_logs()
    for shown in (capsys.readouterr().err, (tmp_path / "miner.log").read_bytes().decode()):
        assert "failed: " in shown
        assert not set(shown) & set("\x1b\x07\r\u202e\x9b\x00")
