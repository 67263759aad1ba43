"""Where the program's own log goes: the terminal, and a file beside the score log."""

import contextlib
import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path

from loguru import logger

from miner.log_file import LineWriter, RotatingFile
from miner.problems import Problems
from protocol.errors import SetupError

FILE_NAME = "miner.log"
MAX_BYTES, KEEP = 20 * 2**20, 5
MOST_WAITING_BYTES = 2 * 2**20
TERMINAL_WAIT_S = 0.2

_COLOUR = r"\x1b\[[\d;]*m"
_OBEYED = re.compile(rf"({_COLOUR})|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What a terminal obeys. Line feeds, tabs and our own colours may stay."""


def configure_logs(
    level: str, folder: Path | None = None, *, problems: Problems | None = None
) -> None:
    """Sends the log to stderr, and to `folder`/miner.log where one is given.

    Removes every other sink. Values of variables are kept out of tracebacks: they may be prompts or
    images. A terminal or a disk that takes nothing stops nobody; lines wait for it in memory.

    Args:
        level: The least level shown.
        folder: Made if it does not exist.
        problems: Told when miner.log cannot be written.

    Raises:
        SetupError: The folder cannot be written.
    """
    logger.remove()
    logger.add(
        _Terminal(),
        level=level,
        filter=lambda record: "only_file" not in record["extra"],
        format="<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}",
        diagnose=False,
        backtrace=False,
    )
    if folder is None:
        return
    file = RotatingFile(folder / FILE_NAME, max_bytes=MAX_BYTES, keep=KEEP)
    try:
        file.open()
    except OSError as error:
        raise SetupError(
            f"the log folder {folder} cannot be written: {error.strerror or error}",
            fix="give a writable folder with --log.dir",
        ) from error
    logger.add(_Disk(file, problems or Problems()), level=level, diagnose=False, backtrace=False)


def close_logs() -> None:
    """Writes what waits for the disk, and ends every sink."""
    logger.remove()


class _Terminal:
    """Standard error, written by a thread: a pipe that nobody reads holds whoever writes to it.

    A line is shown when `write` returns, unless that takes longer than `TERMINAL_WAIT_S`.
    """

    def __init__(self) -> None:
        self._writer = LineWriter(_Stderr(), Problems(), most_bytes=MOST_WAITING_BYTES)

    def write(self, text: str) -> None:
        line = _harmless(text).encode(errors="backslashreplace")
        self._writer.put(line, wait_s=TERMINAL_WAIT_S)

    def stop(self) -> None:
        self._writer.close(TERMINAL_WAIT_S)

    def isatty(self) -> bool:
        with contextlib.suppress(ValueError, AttributeError):
            return sys.stderr.isatty()
        return False


class _Stderr:
    """What standard error is when a line comes: perhaps a full disk, a closed pipe or nothing."""

    path = Path("/dev/stderr")

    def append(self, line: bytes) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream = sys.stderr
            encoding = stream.encoding or "utf-8"
            data = line.decode().encode(encoding, "backslashreplace")
            if type(stream) is not io.TextIOWrapper:  # Another one, such as a progress bar's.
                stream.write(data.decode(encoding))
                stream.flush()
                return
            # Past its buffer, whose lock would hold the end of the process while this waits.
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(stream.fileno(), rest) :]

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Disk:
    """A log file that keeps its lines while the disk takes none."""

    def __init__(self, file: RotatingFile, problems: Problems) -> None:
        self._writer = LineWriter(file, problems, most_bytes=MOST_WAITING_BYTES)

    def write(self, text: str) -> None:
        self._writer.put(_harmless(text).encode(errors="backslashreplace"))

    def stop(self) -> None:
        self._writer.close()


def _harmless(text: str) -> str:
    """Returns a text that moves no cursor: exceptions may quote what a stranger has sent."""
    return _OBEYED.sub(lambda found: found[1] or ascii(found[0])[1:-1], text)


def program_version() -> str:
    """Returns the version of the installed package, or "unknown" when it runs uninstalled."""
    try:
        return metadata.version("splat-miner")
    except metadata.PackageNotFoundError:
        return "unknown"
