"""Files of lines: rotated by size, made again when they are gone, and written by a thread."""

import contextlib
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from miner.problems import Problems

RETRY_S = 1.0
"""Seconds between two attempts to write to a disk that takes nothing."""

CLOSE_LIMIT_S = 5.0
"""Seconds that a disk may take for the last lines when the process ends."""

_FORMAT = "%Y-%m-%d_%H-%M-%S_%f"
_STAMP = r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_\d{6}"


class RotatingFile:
    """Appends whole lines to a file that may be full, deleted or renamed at any time.

    The file is the one at `path` when a line is written, so whoever deletes or renames it gets a
    new one with the next line. Not for several threads.

    Args:
        path: The file. Its folder is made if it does not exist.
        max_bytes: A line that would make the file larger starts a new one. The old one gets the
            time (UTC) between its name and its suffix.
        keep: Old files that are kept, compressed ones included; the oldest are deleted.
        clock: Seconds since the epoch.
        on_open: Called whenever the file is opened, after the folder was made.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int,
        keep: int,
        clock: Callable[[], float] = time.time,
        on_open: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._clock = clock
        self._on_open = on_open
        self._handle: int | None = None

    def open(self) -> int:
        """Returns the descriptor of the file at `path`; opens it if it is not open yet.

        Raises:
            OSError: It cannot be opened.
        """
        if self._handle is not None and not self._is_in_place(self._handle):
            self.close()
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._handle = os.open(self.path, flags, 0o666)
            self._on_open()
        return self._handle

    def append(self, line: bytes) -> None:
        """Writes a line, or nothing of it.

        Args:
            line: With its line feed.

        Raises:
            OSError: It cannot be written.
        """
        for _ in range(3):
            handle = self.open()
            size = os.fstat(handle).st_size
            if size and size + len(line) > self._max_bytes and self._rotate():
                continue
            try:
                self._write(handle, size, line)
            except OSError:
                # The next line finds out how the file ends.
                self.close()
                raise
            if os.fstat(handle).st_nlink:
                return
            # Deleted since it was opened: nobody would find the line.

    def sync(self) -> None:
        """Waits until the disk has what was written.

        Raises:
            OSError: It does not take it.
        """
        if self._handle is not None:
            os.fsync(self._handle)

    def close(self) -> None:
        """Closes the file; the next line opens it again."""
        if self._handle is not None:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = None

    def _is_in_place(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(handle))
        except FileNotFoundError:
            return False

    def _write(self, handle: int, size: int, line: bytes) -> None:
        # A crash, or a disk that was full, may have left half a line: it must not take this one.
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        rest = memoryview(b"\n" + line if torn else line)
        try:
            while rest:
                rest = rest[os.write(handle, rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)
            raise

    def _rotate(self) -> bool:
        """Sets the file aside; returns whether that worked. If not, it grows beyond its size."""
        try:
            old = self._old_files()
            aside = self._aside(old[-1].name if old else "")
            if aside.exists():
                return False
            self.path.rename(aside)
            self.close()
            for path in [*old, aside][: -self._keep]:
                path.unlink()
        except OSError:
            return self._handle is None
        return True

    def _old_files(self) -> list[Path]:
        """Returns the files set aside, the oldest first."""
        pattern = re.compile(re.escape(self.path.stem) + rf"\.{_STAMP}{self.path.suffix}(\.\w+)?")
        files = (path for path in self.path.parent.iterdir() if pattern.fullmatch(path.name))
        return sorted(files, key=lambda path: path.name)

    def _aside(self, newest: str) -> Path:
        """Returns a name with the present time, or a later one than that of the newest file."""
        moment = datetime.fromtimestamp(self._clock(), UTC)
        stamp = moment.strftime(_FORMAT)
        if (found := re.search(_STAMP, newest)) and found[0] >= stamp:
            with contextlib.suppress(ValueError, OverflowError):  # It may be no date.
                later = datetime.strptime(found[0], _FORMAT) + timedelta(microseconds=1)
                stamp = later.strftime(_FORMAT)
        return self.path.with_name(f"{self.path.stem}.{stamp}{self.path.suffix}")


class LineFile(Protocol):
    """What a `LineWriter` writes to; `path` is its name in messages."""

    path: Path

    def append(self, line: bytes) -> None:
        """Writes a line, or raises an error and writes nothing of it."""

    def sync(self) -> None:
        """Waits until what was written is safe."""

    def close(self) -> None:
        """Ends the file, once no more lines come."""


class LineWriter:
    """Writes lines to a file in a thread, and keeps those that the disk does not take.

    No caller waits long for the disk. Once `most_bytes` wait, every new line costs the oldest. A
    process that is killed loses the lines that wait.

    Args:
        file: Written by this alone, in its thread.
        problems: Told when the disk takes nothing, and when it does again.
        most_bytes: Bytes of lines that wait for the disk at most.
        on_lost: Called with a count and the reason when lines were lost and no more lines wait.
        retry_s: Seconds between two attempts.
    """

    def __init__(
        self,
        file: LineFile,
        problems: Problems,
        *,
        most_bytes: int,
        on_lost: Callable[[int, str], None] = lambda count, reason: None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._file = file
        self._problems = problems
        self._most_bytes = most_bytes
        self._on_lost = on_lost
        self._retry_s = retry_s
        self._changed = threading.Condition()
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._lost = 0
        self._closing = False
        self._behind = False
        self._writing_since: float | None = None
        self._reason = "the disk was too slow"
        name = f"writes {file.path.name}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def stuck_s(self) -> float:
        """Seconds for which the disk has been busy with one line."""
        since = self._writing_since
        return 0.0 if since is None else time.monotonic() - since

    def put(self, line: bytes, *, wait_s: float = 0.0) -> None:
        """Takes a line; it is written as soon as the disk takes it.

        Args:
            line: With its line feed.
            wait_s: Seconds to wait until it is written. Once the disk takes longer, nobody waits
                until it has taken every line.
        """
        with self._changed:
            if self._closing and threading.current_thread() is not self._thread:
                return
            self._waiting.append(line)
            self._bytes += len(line)
            while self._bytes > self._most_bytes:
                self._bytes -= len(self._waiting.popleft())
                self._lost += 1
            self._changed.notify_all()
            if wait_s and not self._behind and threading.current_thread() is not self._thread:
                self._behind = not self._changed.wait_for(self._is_idle, wait_s)

    def flush(self, limit_s: float = CLOSE_LIMIT_S) -> bool:
        """Waits until every line is written; returns whether that came about within the limit."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, limit_s)

    def close(self, limit_s: float = CLOSE_LIMIT_S) -> int:
        """Writes what waits, as far as the disk takes it; returns how many lines are lost.

        Lines that come later are ignored.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(limit_s)
        with self._changed:
            writing = self._writing_since is not None
            return self._lost + len(self._waiting) + writing

    def _is_idle(self) -> bool:
        return not self._waiting and self._writing_since is None

    def _run(self) -> None:
        while self._wait_for_line():
            with self._changed:
                if not self._waiting:  # Lost since.
                    continue
                line = self._waiting.popleft()
                self._writing_since = time.monotonic()
            try:
                self._file.append(line)
            except Exception as error:
                self._keep(line, error)
            else:
                self._written(line)
        with contextlib.suppress(OSError):
            self._file.sync()
        self._file.close()

    def _wait_for_line(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            return bool(self._waiting)

    def _written(self, line: bytes) -> None:
        with self._changed:
            self._bytes -= len(line)
            self._writing_since = None
            behind, closing = bool(self._waiting), self._closing
            self._behind = self._behind and behind
            lost = 0 if behind else self._lost
            self._lost -= lost
            self._changed.notify_all()
        if not closing:
            path = self._file.path
            self._problems.clear(str(path), f"{path} is written again")
        if lost:
            self._on_lost(lost, self._reason)

    def _keep(self, line: bytes, error: Exception) -> None:
        """Keeps a line that the disk did not take, and gives the disk time."""
        reason = getattr(error, "strerror", None) or repr(error)
        with self._changed:
            self._waiting.appendleft(line)
            self._writing_since = None
            self._reason = reason
            self._changed.notify_all()
            closing, kept, lost = self._closing, len(self._waiting), self._lost
        if closing:
            with self._changed:
                self._lost += len(self._waiting)
                self._waiting.clear()
            return
        words = f"{self._file.path} cannot be written: {reason}; waiting in memory: {kept} line(s)"
        if lost:
            words += f"; lost: {lost}"
        self._problems.report(str(self._file.path), words)
        with self._changed:
            self._changed.wait_for(lambda: self._closing, self._retry_s)
