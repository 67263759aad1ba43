"""The score log: one JSON line per event, in a file of its own, as docs/score-log.md says."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from miner.request import ActiveRequest, Answer, Caller
from protocol.errors import SetupError
from protocol.tasks import log_safe

FILE_NAME = "score.jsonl"
_MARK = "score_line"


def is_score_line(record: object) -> bool:
    """Tells whether a loguru record belongs to the score log, for the filters of other sinks."""
    return isinstance(record, dict) and _MARK in record["extra"]


class ScoreLog:
    """Writes events to `folder`/score.jsonl, through loguru's rotation.

    Args:
        folder: Made if it does not exist.
        clock: Seconds since the epoch.
        max_mebibytes: Size at which the file is set aside and a new one begun.
        keep: Number of files set aside that are kept.

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
    ) -> None:
        self.path = folder / FILE_NAME
        self._clock = clock
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sink = logger.add(
                self.path,
                format=lambda record: "{extra[" + _MARK + "]}\n",
                filter=lambda record: record["extra"].get("score_file") == str(self.path),
                level=0,
                rotation=f"{max_mebibytes} MB",
                retention=keep,
                encoding="utf-8",
            )
        except OSError as error:
            raise SetupError(
                f"the score log {self.path} cannot be written: {error.strerror or error}",
                fix="give a writable folder with --log.dir",
            ) from error

    def write(self, event: str, **fields: object) -> None:
        """Writes one event; a field that is None is left out."""
        now = self._clock()
        line = {
            "ts": datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds"),
            "unix": round(now, 6),
            "event": event,
            **{name: _rounded(value) for name, value in fields.items() if value is not None},
        }
        text = json.dumps(line, ensure_ascii=True, allow_nan=False)
        logger.bind(**{_MARK: text, "score_file": str(self.path)}).info(event)

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
        completed = answer.outcome == "completed"
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
            predicted_s=answer.predicted_s,
            budget_s=answer.budget_s,
            timings=dict(answer.timings),
            queue_s=max(0.0, answer.total_s - sum(answer.timings.values())),
            total_s=answer.total_s,
            on_time=answer.on_time,
            gaussians=answer.gaussians if completed else None,
            bytes=len(answer.asset) if completed else None,
            valid=answer.validity.passed if answer.validity else None,
        )

    def close(self) -> None:
        """Closes the file; writing afterwards has no effect."""
        logger.remove(self._sink)


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value
