"""Files that are whole or not there: written beside their place, then put into it in one step."""

import contextlib
import os
import secrets
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file in one step: whatever happens, it holds the old content or all of the new.

    Keeps the permissions of a file that exists; a new one gets those of the process' umask.

    Args:
        path: The file; its folder exists. Of a link, the target is replaced.
        data: The content.

    Raises:
        OSError: It cannot be written. What was there before is unchanged.
    """
    path = path.resolve()
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(draft, "xb") as file:
            file.write(data)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), path.stat().st_mode & 0o777)
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
