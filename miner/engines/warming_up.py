"""Warms engines up, and keeps what their steps take over restarts."""

import asyncio
from collections.abc import Mapping

from loguru import logger

from miner.engines import EngineClient
from miner.estimates_file import EstimatesFile
from miner.scheduling.estimates import Estimates
from miner.score.log import ScoreLog
from protocol.tasks import TextTask

SAVE_EVERY_S = 60.0
"""Seconds between two writes of the estimates."""

SLICE_LIMIT_S = 0.2
"""Of optimisation steps that run in one piece: other requests wait for it."""

_SLICED = {"dream": "dreamgaussian", "refine": "refine"}
"""Stages that run in slices, and the group of their settings."""

_TRIAL = TextTask(id="trial", prompt="a red car")


class WarmUps:
    """Fills `Estimates` before the first request, and writes down what requests teach.

    Args:
        estimates: Learns.
        score_log: Receives a `warmed_up` line per engine.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        file: Where estimates are kept over restarts, if anywhere.
    """

    def __init__(
        self,
        estimates: Estimates,
        score_log: ScoreLog,
        *,
        budget_s: float,
        file: EstimatesFile | None,
    ) -> None:
        self._estimates = estimates
        self._score_log = score_log
        self._budget_s = budget_s
        self._file = file
        self._machines: dict[str, str] = {}
        self._saving: asyncio.Task[None] | None = None

    async def run(self, engine: EngineClient) -> None:
        """Warms an engine up; repeats it when the seconds look odd, and takes the smaller ones.

        Raises:
            SetupError: A generation failed.
        """
        if self._file is not None:
            self._file.restore(self._estimates, engine.name, engine.machine)
        seconds = await engine.warm_up()
        odd = self._estimates.oddity(engine.name, seconds) or self._too_slow(engine, seconds)
        if odd is not None:
            logger.warning("the warm-up is repeated: {}", odd)
            again = await engine.warm_up()
            seconds = {key: min(value, again.get(key, value)) for key, value in seconds.items()}
        self._estimates.set_prior(engine.name, seconds)
        self._machines[engine.name] = engine.machine
        self._score_log.write("warmed_up", engine=engine.name, seconds=dict(seconds))
        if problem := self._too_slow(engine, seconds):
            logger.warning("text tasks will be dropped: {}", problem)
        for stage, group in _SLICED.items():
            longest = _longest(engine, stage, seconds)
            if longest > SLICE_LIMIT_S:
                logger.warning(
                    "a slice of the stage {} takes {:.2f} s, and other requests wait for it (limit "
                    "{} s): lower --{}.slice, or the size of its pictures",
                    *(stage, longest, SLICE_LIMIT_S, group),
                )

    def start_saving(self) -> None:
        """Writes the estimates every minute from now on."""
        if self._file is not None:
            self._saving = asyncio.create_task(self._keep_saving(self._file))

    async def stop_saving(self) -> None:
        """Writes them a last time, if they were ever to be written."""
        if self._file is not None and self._saving is not None:
            self._saving.cancel()
            await asyncio.wait({self._saving})
            self._file.save(self._estimates, self._machines)

    def _too_slow(self, engine: EngineClient, seconds: Mapping[str, float]) -> str | None:
        lowest = sum(seconds[step.cost_key] for step in engine.route(_TRIAL, engine.ladder[-1]))
        if lowest <= self._budget_s:
            return None
        name = engine.ladder[-1].name
        return f"the lowest rung, {name}, took {lowest:.1f} s of a budget of {self._budget_s:.1f} s"

    async def _keep_saving(self, file: EstimatesFile) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            await asyncio.to_thread(file.save, self._estimates, dict(self._machines))


def _longest(engine: EngineClient, stage: str, seconds: Mapping[str, float]) -> float:
    """Seconds of the longest step of a stage at the best level; 0 without such a step."""
    steps = engine.route(_TRIAL, engine.ladder[0])
    return max((seconds[step.cost_key] for step in steps if step.stage == stage), default=0.0)
