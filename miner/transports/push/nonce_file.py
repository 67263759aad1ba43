"""Up to which time nonces may have been accepted ahead of our clock, kept over a kill."""

from pathlib import Path
from typing import Literal

from loguru import logger
from pydantic import BaseModel, ConfigDict

from miner.state_file import StateFile
from miner.transports.push.checks import MAX_AHEAD_S, NANOSECONDS

FILE_NAME = "axon-nonces.json"
_AHEAD_NS = int(MAX_AHEAD_S * NANOSECONDS)


class KeptNonces(BaseModel):
    """The content of the file.

    Attributes:
        version: Of this layout.
        accepted_until_ns: No nonce beyond this was accepted; nanoseconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    accepted_until_ns: int


class NonceFile:
    """Lets a restarted miner refuse what it accepted before, though the nonces lie after its start.

    A restarted miner refuses nonces from before its start, so only those of callers whose clocks
    are ahead of ours could be used twice. Each write covers the next seconds too, so there is at
    most one in `MAX_AHEAD_S`, and none while no caller's clock is ahead.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = StateFile(path, KeptNonces, loses="the nonces accepted before the start")
        self._covered_ns = 0
        self._failed = False
        self._kept_ns = self._load()

    def used_until(self, started_ns: int) -> int:
        """The time up to which nonces may have been used before the start; not before the start.

        Args:
            started_ns: The start, by the clock of now.
        """
        if self._kept_ns is None:
            return started_ns + _AHEAD_NS
        # More is kept only where the clock was set back since, and nonces so far ahead are refused.
        return min(max(started_ns, self._kept_ns), started_ns + _AHEAD_NS)

    def covers(self, nonce: int, now_ns: int) -> bool:
        """Whether a nonce may be accepted without a call of `cover`."""
        return nonce <= max(now_ns, self._covered_ns)

    def cover(self, now_ns: int) -> None:
        """Writes the file, for the nonces up to `MAX_AHEAD_S` from now; it blocks for some ms.

        A failure is logged once: callers are not to suffer from a full disk.
        """
        until = now_ns + _AHEAD_NS
        try:
            self._file.save(KeptNonces(accepted_until_ns=until))
        except OSError as error:
            if not self._failed:
                logger.warning(
                    "{} cannot be written ({}): after a kill, messages of the last {:.0f} s from "
                    "callers whose clocks are ahead could be used twice",
                    self._file.path,
                    error.strerror or error,
                    MAX_AHEAD_S,
                )
            self._failed = True
        else:
            self._failed = False
        self._covered_ns = until

    def _load(self) -> int | None:
        """Returns what the file says; None if nobody knows, 0 if there is no file."""
        try:
            there = self._file.path.exists()
            kept = self._file.load()
        except OSError as error:
            logger.warning("{} cannot be read: {}", self._file.path, error.strerror or error)
            return None
        if kept is None:
            return None if there else 0
        return kept.accepted_until_ns
