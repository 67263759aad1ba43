"""Files that are whole or not there: written beside their place, then put into it in one step."""

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file in one step: whatever happens, it holds the old content or all of the new.

    Keeps the permissions of a file that exists; a new one gets those of the process' umask.

    Args:
        path: A plain file, or none yet; its folder exists. Of a link, the target is replaced.
        data: The content.

    Raises:
        OSError: It cannot be written, or is a folder, a device or a pipe. What was there before is
            unchanged.
    """
    path = Path(os.path.realpath(path))
    mode = None
    with contextlib.suppress(FileNotFoundError):
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a plain file", str(path))
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(draft, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode & 0o777)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def remove_drafts(folder: Path) -> None:
    """Removes drafts that `replace_file` left when its process was killed.

    Args:
        folder: Where no other process is writing.
    """
    for draft in folder.glob(f".{'[0-9a-f]' * 16}.part"):
        with contextlib.suppress(OSError):
            draft.unlink()
