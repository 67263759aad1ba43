"""Small pictures of the last completed answers, beside the score log, for its report."""

import queue
import re
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from miner.problems import Problems
from protocol.files import remove_drafts, replace_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from miner.request import Answer, Request

FOLDER = "thumbnails"
"""In the folder of the logs."""

SUFFIX = ".webp"
SIDE = 128
"""Pixels of the longer side."""

MOST_WAITING = 8
"""Cut-outs that wait to be written; an answer beyond them gets no thumbnail."""

CLOSE_LIMIT_S = 2.0
"""Seconds that the disk may take for the last of them when the process ends."""

_NAME = re.compile(rf"[0-9a-f]{{1,64}}{re.escape(SUFFIX)}")
_ABOUT = "thumbnails"


class Thumbnails:
    """A listener of answers that writes `FOLDER`/REQUEST_ID.webp, in a thread of its own.

    Never delays an answer: what the thread cannot keep up with, and what a full disk does not take,
    is left out.

    Args:
        logs: The folder of the logs.
        keep: How many files are kept, at least 1. Older ones are removed, now and whenever one is
            written.
        problems: Told when the disk takes nothing, and when it does again.
    """

    def __init__(self, logs: Path, *, keep: int, problems: Problems) -> None:
        self._folder = logs / FOLDER
        self._keep = keep
        self._problems = problems
        self._files: deque[Path] = deque()
        self._waiting: queue.Queue[tuple[str, NDArray[np.uint8]] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="writes thumbnails", daemon=True)
        self._thread.start()

    def __call__(self, request: "Request", answer: "Answer") -> None:
        """Takes an answer; one without a cut-out gets no thumbnail."""
        if answer.cutout is not None:
            with suppress(queue.Full):
                self._waiting.put_nowait((request.id, answer.cutout))

    def close(self) -> None:
        """Writes what waits, as far as the disk takes it in time. Calls after this are ignored."""
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSE_LIMIT_S)
        self._thread.join(CLOSE_LIMIT_S)

    def _run(self) -> None:
        with suppress(OSError):
            remove_drafts(self._folder)
            found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
            self._files.extend(sorted(found, key=lambda path: path.stat().st_mtime))
        self._remove_old()
        while (item := self._waiting.get()) is not None:
            try:
                self._write(*item)
            except Exception as error:  # A full disk, above all.
                reason = getattr(error, "strerror", None) or repr(error)
                self._problems.report(_ABOUT, f"{self._folder} cannot be written: {reason}")
            else:
                self._problems.clear(_ABOUT, f"{self._folder} is written again")

    def _write(self, name: str, cutout: "NDArray[np.uint8]") -> None:
        from io import BytesIO

        from PIL import Image

        picture = Image.fromarray(cutout)
        picture.thumbnail((SIDE, SIDE))
        data = BytesIO()
        picture.save(data, "WEBP", quality=80)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{name}{SUFFIX}"
        replace_file(path, data.getvalue())
        self._files.append(path)
        self._remove_old()

    def _remove_old(self) -> None:
        while len(self._files) > self._keep:
            with suppress(OSError):
                self._files.popleft().unlink()
