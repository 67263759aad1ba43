"""What the engines were seen to take, kept over restarts."""

from pathlib import Path
from typing import Annotated, Literal

from loguru import logger
from pydantic import BaseModel, ConfigDict, FailFast, Field

from miner.problems import Problems
from miner.scheduling.estimates import Estimates, Learned
from miner.state_file import StateFile

FILE_NAME = "estimates.json"

MOST_BYTES = 2**20

MOST_S = 3600.0
"""No step takes longer; a larger value means that the file is damaged."""


class KeptEstimate(BaseModel):
    """One cost key of one engine; seconds and square seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    engine: str
    key: str
    mean: float = Field(gt=0.0, le=MOST_S)
    variance: float = Field(ge=0.0, le=MOST_S**2)
    level: float = Field(gt=0.0, le=MOST_S)


class KeptEstimates(BaseModel):
    """The content of the file.

    Attributes:
        version: Of this layout.
        machines: Preset and device of each engine, by its name; estimates of another machine are
            of no use.
        estimates: What was learned from requests.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    machines: dict[str, str]
    estimates: Annotated[tuple[KeptEstimate, ...], FailFast()]


class EstimatesFile:
    """Loads and saves `Estimates`. A file that cannot be used costs a less sure start, no more.

    Args:
        path: The file.
        problems: Notified when the file cannot be written, and when it can again.
    """

    def __init__(self, path: Path, problems: Problems | None = None) -> None:
        loses = "what stages were seen to take"
        self._file = StateFile(path, KeptEstimates, loses=loses, most_bytes=MOST_BYTES)
        self._problems = problems or Problems()

    def restore(self, estimates: Estimates, engine: str, machine: str) -> None:
        """Takes over what an earlier run learned on the same machine."""
        try:
            kept = self._file.load()
        except OSError as error:
            logger.warning("{} cannot be read: {}", self._file.path, error.strerror or error)
            return
        if kept is None or kept.machines.get(engine) != machine:
            return
        for row in kept.estimates:
            if row.engine == engine:
                learned = Learned(row.mean, row.variance, row.level, 0.0, 0.0)
                estimates.restore(engine, row.key, learned)

    def save(self, estimates: Estimates, machines: dict[str, str]) -> None:
        """Writes what was learned from requests.

        A disk that does not take it is reported once; the next save tries again.
        """
        rows = tuple(
            KeptEstimate(
                engine=engine,
                key=key,
                mean=learned.mean,
                variance=learned.variance,
                level=learned.level,
            )
            for (engine, key), learned in estimates.export().items()
            if learned.observed and _is_plausible(learned)
        )
        path = self._file.path
        try:
            self._file.save(KeptEstimates(machines=machines, estimates=rows))
        except OSError as error:
            words = f"{path} is not written: {error.strerror or error}"
            self._problems.report(str(path), words)
        else:
            self._problems.clear(str(path), f"{path} is written again")


def _is_plausible(learned: Learned) -> bool:
    return (
        0.0 < learned.mean <= MOST_S
        and 0.0 < learned.level <= MOST_S
        and learned.variance <= MOST_S**2
    )
