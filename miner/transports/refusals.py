"""Requests that are turned away before they become tasks."""

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loguru import logger
from starlette.responses import JSONResponse

from miner.score.log import ScoreLog

WINDOW_S = 60.0
"""Least time between two lines of one code."""

RETRY_AFTER_S = 5
"""Seconds after which a caller may ask again, where nothing better can be said."""


@dataclass(frozen=True)
class Refusal:
    """Why a caller is refused: a short word for the log, an ASCII sentence for the caller."""

    code: str
    reason: str

    def answer(self, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """The answer to the caller: JSON with reason and code; a 503 says when to ask again."""
        retry = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
        content = {"message": self.reason, "reason_code": self.code}
        return JSONResponse(content, status, {**retry, **(headers or {})})


class RefusalLog:
    """Counts refusals and writes them to the score log, at most one line a minute for each code.

    Refused callers need no valid signature, so with a line each, anybody could fill the disk. May
    be used from several threads.

    Args:
        score_log: Receives `refused` lines.
        transport: Name of the transport.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, score_log: ScoreLog, transport: str, clock: Callable[[], float]) -> None:
        self.transport = transport
        self._score_log = score_log
        self._clock = clock
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._pending: dict[str, _Pending] = {}
        self._written: dict[str, float] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """Refusals by code since the start, as they are now."""
        with self._lock:
            return dict(self._totals)

    def note(self, refusal: Refusal, *, warn: bool = False) -> None:
        """Counts a refusal, and writes the count once a minute has passed since the last line.

        Args:
            refusal: Its reason is the one that the next line gives.
            warn: Whether that line comes with a warning in the program's own log.
        """
        with self._lock:
            self._totals[refusal.code] += 1
            pending = self._pending.get(refusal.code, _Pending(0, "", False))
            self._pending[refusal.code] = _Pending(pending.count + 1, refusal.reason, warn)
            self._write_if_due(refusal.code)

    def write_due(self) -> None:
        """Writes the counts for whose code the minute is over; call it now and then."""
        with self._lock:
            for code in list(self._pending):
                self._write_if_due(code)

    def flush(self) -> None:
        """Writes the counts that have not been written."""
        with self._lock:
            for code in list(self._pending):
                self._write(code)

    def _write_if_due(self, code: str) -> None:
        last = self._written.get(code)
        if last is None or self._clock() - last >= WINDOW_S:
            self._write(code)

    def _write(self, code: str) -> None:
        pending = self._pending.pop(code)
        now = self._clock()
        window = now - self._written.get(code, now)
        self._written[code] = now
        self._score_log.write(
            "refused",
            transport=self.transport,
            reason_code=code,
            reason=pending.reason,
            count=pending.count,
            window_s=window,
        )
        if pending.warn:
            logger.warning("{}: {} ({} x {})", self.transport, pending.reason, pending.count, code)


@dataclass(frozen=True)
class _Pending:
    count: int
    reason: str
    warn: bool
