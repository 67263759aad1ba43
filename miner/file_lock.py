"""One writer for each file: a lock that the kernel gives back, however its process ends."""

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from protocol.errors import SetupError
from protocol.text import printable

FOLDER_LOCK = "miner.lock"
"""Name of the lock of a log folder, beside the logs."""

_MOST_BYTES = 4096
_ATTEMPTS, _PAUSE_S = 10, 0.05
"""A monitor holds the lock for the moment in which it asks whether a miner does."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
"""What `flock` fails with where the file system has no locks, as some network drives."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, or held it last.

    Attributes:
        pid: Its number on its machine.
        host: The name of that machine.
        since: When it took the lock (UTC, ISO 8601).
        inode: Number of the lock file, by which a copy of it is told.
    """

    pid: int
    host: str
    since: str
    inode: int

    @property
    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()


class FileLock:
    """Held by this process until it is released or the process ends, by whatever.

    Args:
        path: The lock file. It stays when the lock is released: another process may be about to
            lock it.
        what: What has one writer, for the message: "the log folder logs".
        flag: The setting that names another place.

    Raises:
        SetupError: Another process holds it, or the file cannot be written.
    """

    def __init__(self, path: Path, *, what: str, flag: str) -> None:
        self._path = path
        self._what = what
        self._flag = flag
        try:
            self._handle = self._acquire()
        except OSError as error:
            raise SetupError(
                f"{what} cannot be written: {printable(str(error.filename or path))}: "
                f"{printable(error.strerror or repr(error))}",
                fix=f"run as the user that owns it, or choose a writable place with {flag}",
            ) from error

    def renew(self) -> None:
        """Takes the lock again if its file was deleted, for example with its folder.

        Raises:
            SetupError: Another process has been faster.
            OSError: The file cannot be written.
        """
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self._path), os.fstat(self._handle)):
                return
        renewed = self._acquire()
        self.release()
        self._handle = renewed

    def release(self) -> None:
        """Gives the lock back; its file stays."""
        with suppress(OSError):
            os.close(self._handle)

    def _acquire(self) -> int:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _lock(handle):
                raise self._taken()
            inode = os.fstat(handle).st_ino
            mine = Holder(os.getpid(), socket.gethostname(), _now(), inode)
            with suppress(OSError):  # A full disk: the lock holds without words.
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(mine.__dict__).encode() + b"\n", 0)
        except BaseException:
            os.close(handle)
            raise
        return handle

    def _taken(self) -> SetupError:
        holder = _read(self._path)
        if holder is None:
            who, stop = "another process", "stop that process"
        elif holder.is_local:
            who, stop = f"process {holder.pid}", f"stop it with: kill {holder.pid}"
        else:
            who, stop = f"process {holder.pid} on {holder.host}", f"stop it on {holder.host}"
        since = f" since {holder.since}" if holder is not None else ""
        return SetupError(
            f"{self._what} is in use by {who}{since}",
            fix=f"give this miner a place of its own with {self._flag}, or {stop}",
        )


def look(path: Path) -> tuple[bool | None, Holder | None]:
    """Returns whether a process holds a lock, and which one held it last.

    Args:
        path: The lock file.

    Returns:
        True if it is held, False if its process on this machine has ended, None if that cannot be
        said: there is no lock, it was another machine's, whose locks are not seen here, or it is a
        copy, as in a backup.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None, None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, _read(path)
    except OSError:
        return None, _read(path)
    else:
        holder, inode = _read(path), os.fstat(handle).st_ino
    finally:
        os.close(handle)
    ended = holder is not None and holder.is_local and holder.inode == inode
    return (False if ended else None), holder


def _lock(handle: int) -> bool:
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            logger.warning(
                "this file system has no locks ({}): nothing stops a second miner from using the "
                "same folder",
                error.strerror,
            )
            return True
        else:
            return True
    return False


def _read(path: Path) -> Holder | None:
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(_MOST_BYTES))
        pid, host, since = content["pid"], content["host"], content["since"]
        inode = content.get("inode")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(pid, int) or not isinstance(host, str) or not isinstance(since, str):
        return None
    return Holder(
        pid, printable(host, 64), printable(since, 32), inode if isinstance(inode, int) else 0
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
