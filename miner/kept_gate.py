"""The gate with what it learned from validators, kept over restarts."""

import asyncio
from pathlib import Path
from typing import Annotated, Literal

from loguru import logger
from pydantic import BaseModel, ConfigDict, FailFast, Field

from miner.problems import Problems
from miner.scheduling.gate import MOST_SCORERS, WINDOW, Gate, GateLimits, Pair
from miner.state_file import StateFile

FILE_NAME = "calibration.json"

MOST_BYTES = 2 * 2**20


class KeptPair(BaseModel):
    """A `Pair` in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    predicted: float
    accepted: bool
    given: float | None = None
    threshold: float
    scorer: str = Field(max_length=200)
    probe: bool = False


class KeptPairs(BaseModel):
    """The content of the file.

    Attributes:
        version: Of this layout.
        pairs: By scorer, the oldest first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    pairs: Annotated[tuple[KeptPair, ...], FailFast()] = Field(max_length=MOST_SCORERS * WINDOW)


class KeptGate:
    """A gate whose pairs outlive the process. A file that cannot be used costs what was learned.

    Args:
        limits: Of the gate.
        path: The file.
        problems: Notified when the file cannot be written, and when it can again.

    Attributes:
        gate: With the pairs of earlier runs.
    """

    def __init__(self, limits: GateLimits, path: Path, problems: Problems | None = None) -> None:
        loses = "what validators said of earlier results"
        self._file = StateFile(path, KeptPairs, loses=loses, most_bytes=MOST_BYTES)
        self._problems = problems or Problems()
        self._saving = asyncio.Lock()
        self.gate = Gate(limits, self._restored())

    async def observe(self, pair: Pair) -> None:
        """Has the gate learn, and writes the file off the event loop.

        A disk that does not take it is reported once; the next verdict tries again.
        """
        self.gate.observe(pair)
        async with self._saving:
            pairs = self.gate.pairs
            path = self._file.path
            try:
                await asyncio.to_thread(self._save, pairs)
            except OSError as error:
                words = f"{path} is not written: {error.strerror or error}"
                self._problems.report(str(path), words)
            else:
                self._problems.clear(str(path), f"{path} is written again")

    def _save(self, pairs: tuple[Pair, ...]) -> None:
        self._file.save(KeptPairs(pairs=tuple(KeptPair(**vars(pair)) for pair in pairs)))

    def _restored(self) -> tuple[Pair, ...]:
        try:
            kept = self._file.load()
        except OSError as error:
            logger.warning("{} cannot be read: {}", self._file.path, error.strerror or error)
            return ()
        return () if kept is None else tuple(Pair(**vars(pair)) for pair in kept.pairs)
