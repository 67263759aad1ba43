"""The lines of a log that grows and is rotated: each of them once, the oldest first."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import IO, Any

from miner.score.fields import LASTING, moment_of, parse

LONGEST_LINE = 2**20
"""Bytes; a longer line is damaged, and not kept in memory."""

DAMAGE = "\ufffd"
"""Stands for bytes that are no text. The miner writes ASCII, so no sound line holds it."""

_TIME = r"\d[\d._-]*"
"""Of a file set aside, or its number."""

MOST_MEMORY = 2**27
"""Bytes that unpacking may take; a file that asks for more is damaged."""

_MARKS = tuple(f'"event": "{event}"'.encode() for event in LASTING)
_CHUNK = 2**16
_HEAD = 1024


class Follower:
    """Reads a log from look to look, through whatever is done to its file between them.

    A file is known by its first kibibyte, so that one that was renamed, copied or compressed is not
    read twice. Files set aside stand beside the log: `score.<time>.jsonl`, or `score.jsonl.1` and
    `score.jsonl-<date>` as logrotate names them, plain or compressed (gzip, bzip2, xz, zstd).

    Args:
        path: The file that is written; it may come later.
        history: Whether files set aside before the first look are read first.
        since: Seconds since the epoch. Of files whose lines are all older, only the last event of
            each kind in `LASTING` is read.
    """

    def __init__(self, path: Path, *, history: bool = False, since: float = -inf) -> None:
        self._path = path
        self._since = since
        self._position = 0
        self._history = history
        self._listed = False
        self._seen: set[bytes] = set()
        self._file: IO[bytes] | None = None
        self._head = b""
        self._lines = _Lines()

    def look(self) -> Iterator[str]:
        """Yields the lines that were completed since the last look, without line feeds."""
        while (file := self._opened()) is not None:
            yield from self._set_aside()
            yield from self._grown(file)
            if self._is_in_place(file):
                return
            yield from self._grown(file)  # What was written before it was renamed.
            yield from self.rest()
            self._seen.add(_head(file))
            self.close()
        yield from self._set_aside()

    def rest(self) -> Iterator[str]:
        """Yields what there is of a line that is not complete."""
        yield from self._lines.end()

    def close(self) -> None:
        """Closes the file that is read; the next look begins with the file there is then."""
        if self._file is not None:
            self._file.close()
        self._file, self._position, self._head = None, 0, b""

    def _opened(self) -> IO[bytes] | None:
        if self._file is None and os.path.isfile(self._path):
            with suppress(OSError):
                self._file = open(self._path, "rb", opener=_without_waiting)  # noqa: SIM115
                self._head = _head(self._file)
        return self._file

    def _is_in_place(self, file: IO[bytes]) -> bool:
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except OSError:
            return False

    def _grown(self, file: IO[bytes]) -> Iterator[str]:
        """Yields what was appended; reads the copy and starts over if the file was cut off."""
        size, head = os.fstat(file.fileno()).st_size, _head(file)
        if size < self._position or not head.startswith(self._head):
            yield from self._copied()
            yield from self.rest()
            self._position = 0
            yield from self._set_aside()
        self._head = head
        if self._position == 0 and _unpacker(head) is not None:
            yield from self._unpacked(self._path, 0)
            self._position = size
            return
        file.seek(self._position)
        while chunk := file.read(_CHUNK):
            self._position += len(chunk)
            yield from self._lines.of(chunk)

    def _copied(self) -> Iterator[str]:
        """Yields the rest of a file that was copied before it was cut off (copytruncate)."""
        for path, head in self._siblings():
            if self._head and head.startswith(self._head):
                self._seen.add(head)
                yield from self._unpacked(path, self._position)
                return

    def _set_aside(self) -> Iterator[str]:
        """Yields the lines of files set aside that were not there, or not read, before."""
        first, self._listed = not self._listed, True
        if not first and self._file is not None and self._position:
            return  # Nothing was set aside since this file was begun.
        # One that begins as the file that is read is a copy of it.
        siblings = [each for each in self._siblings() if not self._head.startswith(each[1])]
        older = self._older([head for _, head in siblings]) if first and self._history else 0
        yield from _lasting([path for path, _ in siblings[:older]])
        for place, (path, head) in enumerate(siblings):
            if head in self._seen:
                continue
            self._seen.add(head)
            if place >= older and (self._history or not first):
                yield from self._unpacked(path, 0)
                yield from self.rest()

    def _older(self, heads: list[bytes]) -> int:
        """Returns how many of the files that begin so, the oldest first, end before the period."""
        count = 0
        for following in [*heads, self._head][1:]:
            begun = _begun(following)
            if begun is None or begun > self._since:
                break
            count += 1
        return count

    def _siblings(self) -> list[tuple[Path, bytes]]:
        """Returns the files set aside that were not read, with their heads, the oldest first."""
        found = []
        current = None if self._file is None else os.fstat(self._file.fileno())
        for path in files_beside(self._path):
            with suppress(OSError):
                state = path.stat()
                if current is not None and os.path.samestat(state, current):
                    continue
                head = _head_of(path)
                if head and head not in self._seen:
                    begun = _begun(head)
                    packed = path.suffix in _SUFFIXES
                    order = (state.st_mtime if begun is None else begun, packed, path.name)
                    found.append((order, path, head))
        return [(path, head) for _, path, head in sorted(found)]

    def _unpacked(self, path: Path, position: int) -> Iterator[str]:
        try:
            with _reader(path) as file:
                while position and (skipped := file.read(min(position, _CHUNK))):
                    position -= len(skipped)
                while chunk := file.read(_CHUNK):
                    yield from self._lines.of(chunk)
        except Exception:  # Each way of packing has errors of its own.
            yield from self.rest()
            yield DAMAGE


class _Lines:
    """Cuts bytes into lines, and keeps the end until the rest of its line comes."""

    def __init__(self) -> None:
        self._rest = b""
        self._too_long = False

    def of(self, chunk: bytes) -> Iterator[str]:
        first, feed, others = chunk.partition(b"\n")
        self._extend(first)
        if feed:
            yield from self.end(always=True)
            whole, feed, last = others.rpartition(b"\n")
            if feed:
                for line in whole.decode("utf-8", "replace").split("\n"):
                    yield line.removesuffix("\r")
            self._extend(last)

    def end(self, *, always: bool = False) -> Iterator[str]:
        """Yields the line as it is now, and begins a new one."""
        line, self._rest = self._rest, b""
        cut, self._too_long = self._too_long, False
        if line or always:
            text = line.decode("utf-8", "replace").removesuffix("\r")
            yield text + DAMAGE if cut else text

    def _extend(self, part: bytes) -> None:
        if self._too_long:
            return
        self._rest += part
        if len(self._rest) > LONGEST_LINE:
            self._rest, self._too_long = self._rest[:100], True


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file without waiting for a pipe's writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def files_beside(path: Path) -> Iterator[Path]:
    """Yields the files whose names say that they were set aside from this one: no other copies."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    packed = "|".join(map(re.escape, _SUFFIXES))
    names = re.compile(rf"{stem}([.-]{_TIME}{suffix}|{suffix}[.-]{_TIME})({packed})?")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if names.fullmatch(other.name) and other.is_file():
                yield other


def _begun(head: bytes) -> float | None:
    """Returns when the first line of a file was written."""
    return moment_of(parse(head.partition(b"\n")[0].decode("utf-8", "replace")))


def _lasting(paths: list[Path]) -> Iterator[str]:
    """Yields the last event of each kind in `LASTING`, of the run that these files end with."""
    found: dict[bytes, bytes] = {}
    for path in reversed(paths):
        last: dict[bytes, bytes] = {}
        with suppress(Exception), _reader(path) as file:
            rest = b""
            while block := file.read(_CHUNK):
                whole, _, rest = (rest[-LONGEST_LINE:] + block).rpartition(b"\n")
                if not any(mark in whole for mark in _MARKS):
                    continue
                for line in whole.split(b"\n"):
                    for mark in _MARKS:
                        if mark in line:
                            last = {} if mark == _MARKS[0] else last
                            last.pop(mark, None)
                            last[mark] = line  # At the end, since the order counts.
        found = {mark: line for mark, line in last.items() if mark not in found} | found
        if _MARKS[0] in found:
            break
    yield from (line.decode("utf-8", "replace") for line in found.values())


def _head(file: IO[bytes]) -> bytes:
    with suppress(OSError):
        return os.pread(file.fileno(), _HEAD, 0)
    return b""


def _head_of(path: Path) -> bytes:
    """Returns the first bytes of a file as they were before it was packed."""
    head: bytes
    with _reader(path) as file, suppress(Exception):
        head = file.read(_HEAD)
        return head
    with open(path, "rb") as file:
        return file.read(_HEAD)


def _reader(path: Path) -> Any:
    with open(path, "rb", opener=_without_waiting) as file:
        unpack = _unpacker(file.read(_HEAD))
    return open(path, "rb") if unpack is None else unpack(path)


def _unpacker(head: bytes) -> Callable[[Path], Any] | None:
    return next((unpack for magic, unpack in _PACKED.items() if head.startswith(magic)), None)


def _gzip(path: Path) -> Any:
    import gzip

    return gzip.open(path)


def _bzip2(path: Path) -> Any:
    import bz2

    return bz2.open(path)


def _xz(path: Path) -> Any:
    from miner.score.xz import XzFile

    return XzFile(path, most_memory=MOST_MEMORY)


def _zstd(path: Path) -> Any:
    import zstandard

    unpack = zstandard.ZstdDecompressor(max_window_size=MOST_MEMORY)
    return unpack.stream_reader(open(path, "rb"), read_across_frames=True, closefd=True)


_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_PACKED = {b"\x1f\x8b": _gzip, b"BZh": _bzip2, b"\xfd7zXZ": _xz, b"\x28\xb5\x2f\xfd": _zstd}
