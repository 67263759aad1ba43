"""What `GET /status` shows."""

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata

from miner.logs import program_version
from miner.metrics.events import EventMetrics
from miner.problems import Problems
from miner.snapshot import ServiceSnapshot

_LIBRARIES = ("torch", "bittensor")


class StatusDocument:
    """The miner in one JSON object; docs/metrics.md has its fields.

    Args:
        snapshot: Reads the service.
        events: Knows since when the state is what it is.
        problems: What keeps files from being written.
        preset: Name of the preset.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        snapshot: Callable[[], ServiceSnapshot],
        events: EventMetrics,
        problems: Problems,
        *,
        preset: str,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._events = events
        self._problems = problems
        self._preset = preset
        self._budget_s = budget_s
        self._clock = clock
        self._started = clock()

    def __call__(self) -> dict[str, object]:
        """Returns the object; call it in the service's event loop."""
        now = self._snapshot()
        return {
            "state": now.state,
            "since": datetime.fromtimestamp(self._events.state_since, UTC).isoformat(
                timespec="seconds"
            ),
            "uptime_s": round(self._clock() - self._started, 1),
            "preset": self._preset,
            "budget_s": self._budget_s,
            "predicted_wait_s": _rounded(now.predicted_wait_s),
            "active": dict(now.active),
            "waiting": now.waiting,
            "engines": [
                {**asdict(engine), "backlog_s": _rounded(engine.backlog_s)}
                for engine in now.engines
            ],
            "problems": self._problems.sentences,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    """The versions of the program, of Python, and of large libraries that are loaded."""
    loaded = {name: metadata.version(name) for name in _LIBRARIES if name in sys.modules}
    return {"splat-miner": program_version(), "python": platform.python_version(), **loaded}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
