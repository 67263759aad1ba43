"""Requests that are turned away before they become tasks."""

from collections.abc import Callable
from dataclasses import dataclass

from miner.score.log import ScoreLog


@dataclass(frozen=True)
class Refusal:
    """Why a caller is refused: a short word for the log, an ASCII sentence for the caller."""

    code: str
    reason: str


class RefusalLog:
    """Writes refusals to the score log, at most one line a minute for each code.

    Refused callers need no valid signature, so with a line each, anybody could fill the disk.

    Args:
        score_log: Receives `refused` lines.
        transport: Name of the transport.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, score_log: ScoreLog, transport: str, clock: Callable[[], float]) -> None:
        self._score_log = score_log
        self._transport = transport
        self._clock = clock
        self._pending: dict[str, tuple[int, str]] = {}
        self._written: dict[str, float] = {}

    def note(self, refusal: Refusal) -> None:
        """Counts a refusal, and writes the count once a minute has passed since the last line."""
        count, _ = self._pending.get(refusal.code, (0, ""))
        self._pending[refusal.code] = (count + 1, refusal.reason)
        last = self._written.get(refusal.code)
        if last is None or self._clock() - last >= 60.0:
            self._write(refusal.code)

    def flush(self) -> None:
        """Writes the counts that have not been written."""
        for code in list(self._pending):
            self._write(code)

    def _write(self, code: str) -> None:
        count, reason = self._pending.pop(code)
        now = self._clock()
        window = now - self._written.get(code, now)
        self._written[code] = now
        self._score_log.write(
            "refused",
            transport=self._transport,
            reason_code=code,
            reason=reason,
            count=count,
            window_s=window,
        )
