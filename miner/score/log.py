"""The score log: one JSON line per event, in a file of its own, as docs/score-log.md says."""

import json
import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from generation.words import for_log
from miner.file_lock import FileLock
from miner.log_file import CLOSE_LIMIT_S, LineWriter, RotatingFile
from miner.problems import Problems
from miner.request import ActiveRequest, Answer, Caller
from miner.score import FILE_NAME
from protocol.errors import SetupError
from protocol.tasks import log_safe

MOST_WAITING_BYTES = 16 * 2**20
"""Lines that wait for a disk that takes nothing: some 30,000, hours of a busy miner."""

WAIT_S = 0.02
"""An event waits so long for its line at most, so that a killed process has lost nothing."""

STUCK_S = 10.0
"""A disk that is busy with one line for longer is a problem."""

MOST_CHARACTERS = 2**17
"""A longer text in a field is cut."""

Listener = Callable[[str, Mapping[str, object]], None]
"""Takes the name of an event and its fields as they are in the file."""


class ScoreLog:
    """Writes events to `folder`/score.jsonl, whatever the disk does.

    A thread writes the lines, and keeps them while the disk takes none. `write` returns once its
    line is in the file, or after `WAIT_S`; `close` waits until all are.

    Args:
        folder: Made if it does not exist.
        clock: Seconds since the epoch.
        max_mebibytes: Size at which the file is set aside and a new one begun.
        keep: Number of files set aside that are kept.
        most_waiting_bytes: Size of the lines that wait for the disk; the oldest beyond it are
            lost, and a `log_lost` line counts them.
        lock: Of the folder; taken again when the folder had to be made again.

    Attributes:
        path: The file.
        problems: What keeps files from being written; others add theirs.

    Raises:
        SetupError: The folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        max_mebibytes: int = 20,
        keep: int = 20,
        most_waiting_bytes: int = MOST_WAITING_BYTES,
        lock: FileLock | None = None,
    ) -> None:
        self.path = folder / FILE_NAME
        self._lock = lock
        self.problems = Problems()
        self._clock = clock
        self._listeners: list[Listener] = []
        file = RotatingFile(
            self.path,
            max_bytes=max_mebibytes * 2**20,
            keep=keep,
            clock=clock,
            on_open=self._renew_lock,
        )
        try:
            file.open()
        except OSError as error:
            raise SetupError(
                f"the score log {self.path} cannot be written: {error.strerror or error}",
                fix="give a writable folder with --log.dir",
            ) from error
        self._writer = LineWriter(
            file, self.problems, most_bytes=most_waiting_bytes, on_lost=self._lost
        )

    def listen(self, listener: Listener) -> None:
        """Tells a listener of every event from now on, in the thread that calls `write`.

        What the listener raises is logged and ignored.
        """
        self._listeners.append(listener)

    def write(self, event: str, **fields: object) -> None:
        """Writes one event; a field that is None or not a finite number is left out."""
        now = self._clock()
        plain = _plain(fields)
        line = {
            "ts": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
            "unix": round(now, 6),
            "event": event,
            **plain,
        }
        text = json.dumps(line, ensure_ascii=True, allow_nan=False, default=str)
        self._writer.put(text.encode() + b"\n", wait_s=WAIT_S)
        if (stuck_s := self._writer.stuck_s) > STUCK_S:
            words = f"{self.path}: the disk has not taken a line for {stuck_s:.0f} s"
            self.problems.report(str(self.path), words)
        for listener in self._listeners:
            try:
                listener(event, plain)
            except Exception as error:
                logger.opt(exception=error).error("a listener failed on an event {}", event)

    def flush(self, limit_s: float = CLOSE_LIMIT_S) -> bool:
        """Waits until every event is in the file; returns whether that came about in time."""
        return self._writer.flush(limit_s)

    def admitted(self, active: ActiveRequest, *, pending: int) -> None:
        """Writes that a request was admitted; `pending` counts those that have no answer yet."""
        request = active.request
        self.write(
            "admitted",
            request_id=request.id,
            task_id=request.task.log_id,
            transport=request.transport,
            kind=request.task.kind,
            caller=request.caller.hotkey,
            uid=request.caller.uid,
            rung=active.plan.rung.name,
            probe=active.probe or None,
            predicted_s=active.predicted_s,
            budget_s=active.budget_s,
            pending=pending,
        )

    def answered(
        self, answer: Answer, *, request_id: str, caller: Caller, transport: str, kind: str | None
    ) -> None:
        """Writes the one `answered` line of a request."""
        self.write(
            "answered",
            request_id=request_id,
            task_id=log_safe(answer.task_id),
            transport=transport,
            kind=kind,
            caller=caller.hotkey,
            uid=caller.uid,
            outcome=answer.outcome,
            reason_code=answer.reason_code,
            reason=answer.reason,
            stage=answer.stage,
            rung=answer.rung,
            engine=answer.engine,
            lost_engine=answer.lost_engine,
            predicted_s=answer.predicted_s,
            budget_s=answer.budget_s,
            timings=dict(answer.timings),
            queue_s=max(0.0, answer.total_s - answer.candidates_s - sum(answer.timings.values())),
            total_s=answer.total_s,
            on_time=answer.on_time,
            gaussians=answer.gaussians if answer.cloud is not None else None,
            bytes=len(answer.asset) if answer.cloud is not None else None,
            triangles=len(answer.mesh.faces) if answer.mesh is not None else None,
            valid=answer.validity.passed if answer.validity else None,
            seed=answer.seed,
            score=answer.score.value if answer.score else None,
            score_parts=dict(answer.score.parts) if answer.score else None,
            scorer=answer.score.scorer if answer.score else None,
            first_score=answer.first_score,
            candidates=answer.candidates if answer.score else None,
            pictures=answer.pictures if answer.score else None,
            candidates_s=answer.candidates_s if answer.score else None,
            gated=answer.gated if answer.gate else None,
            gate_limit=answer.gate.limit if answer.gate else None,
            margin=answer.gate.margin if answer.gate else None,
            gate_probe=True if answer.gate and answer.gate.probe else None,
            understood=for_log(answer.understood) or None,
            ignored=for_log(answer.ignored) or None,
        )

    def close(self) -> None:
        """Writes what waits for the disk, and closes the file; later events are ignored."""
        lost = self._writer.close()
        if lost:
            logger.error("{} lines of {} are lost: the disk did not take them", lost, self.path)

    def _renew_lock(self) -> None:
        if self._lock is None:
            return
        try:
            self._lock.renew()
        except (OSError, SetupError) as error:
            self.problems.report("lock", str(error))
        else:
            self.problems.clear("lock", "the lock of the log folder is this miner's again")

    def _lost(self, count: int, reason: str) -> None:
        self.write("log_lost", count=count, reason=reason)


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields as JSON has them: short, rounded to microseconds, without None or NaN."""
    plain = {name: _value(value) for name, value in fields.items()}
    return {name: value for name, value in plain.items() if value is not None}


def _value(value: object) -> object:
    match value:
        case float():
            return round(value, 6) if math.isfinite(value) else None
        case str():
            return value[:MOST_CHARACTERS]
        case dict():
            return _plain(value)
        case _:
            return value
