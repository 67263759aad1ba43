"""The engines of a miner: which can be used, which are suspected to hang, which are lost."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from loguru import logger

from miner.engines import EngineClient
from miner.engines.warming_up import WarmUps
from miner.scheduling.watchdog import Overrun
from miner.score.log import ScoreLog
from protocol.errors import SetupError


class Fleet:
    """Starts engines, watches their steps, and closes them.

    Args:
        engines: Not started yet; their names are different.
        warm_ups: Warms each of them up.
        score_log: Receives a line when one is suspect, comes back or is lost.

    Attributes:
        names: Of all engines, those that are lost included.
        hung: Whether a thread is left that will not end: the process must end by `os._exit`.
    """

    def __init__(
        self, engines: Sequence[EngineClient], warm_ups: WarmUps, score_log: ScoreLog
    ) -> None:
        self._alive = {engine.name: engine for engine in engines}
        self._warm_ups = warm_ups
        self._score_log = score_log
        self._to_close: list[EngineClient] = []
        self._suspect: set[str] = set()
        self.names = tuple(engine.name for engine in engines)
        self.hung = False

    def __len__(self) -> int:
        """How many are not lost."""
        return len(self._alive)

    def __getitem__(self, name: str) -> EngineClient:
        return self._alive[name]

    @property
    def suspect(self) -> frozenset[str]:
        """The engines with a step past its limit."""
        return frozenset(self._suspect)

    @property
    def usable(self) -> bool:
        """Whether there is one that is neither lost nor suspect."""
        return not self._alive.keys() <= self._suspect

    async def start(self, on_ready: Callable[[EngineClient], None]) -> None:
        """Loads them and warms them up, beside each other; one that cannot start is left out.

        Args:
            on_ready: Receives each engine that can be used.

        Raises:
            SetupError: None of them can start.
        """

        async def start(engine: EngineClient) -> None:
            await engine.start()
            await self._warm_ups.run(engine)
            on_ready(engine)

        engines = list(self._alive.values())
        results = await asyncio.gather(*map(start, engines), return_exceptions=True)
        for engine, error in zip(engines, results, strict=True):
            if error is None:
                continue
            if not isinstance(error, SetupError) or len(self._alive) == 1:
                raise error
            logger.error("engine {} does not start, the others serve: {}", engine.name, error)
            self._to_close.append(self._alive.pop(engine.name))
        self._warm_ups.start_saving()

    def watch(self, overruns: Iterable[Overrun]) -> Mapping[str, str]:
        """Takes note of the steps that are past their limits now.

        Returns:
            The engines that had their time to come back, with the reason to give each of them up.
        """
        suspects: dict[str, Overrun] = {}
        for overrun in sorted(overruns, key=lambda overrun: overrun.lost):
            suspects[overrun.active.engine or ""] = overrun  # One that is lost counts most.
        for name, overrun in suspects.items():
            if name not in self._suspect:
                logger.error("engine {} is suspected to hang: {}", name, overrun)
                self._score_log.write("engine_suspect", engine=name, reason=str(overrun))
        for name in self._suspect - suspects.keys():
            logger.info("engine {} is back", name)
            self._score_log.write("engine_back", engine=name)
        self._suspect = set(suspects)
        return {
            name: f"{overrun} and did not come back"
            for name, overrun in suspects.items()
            if overrun.lost
        }

    def lose(self, name: str, reason: str, *, hangs: bool) -> bool:
        """Takes an engine out for good; returns False if it was out already.

        Args:
            name: Of the engine.
            reason: Why it cannot be used.
            hangs: One of its threads does not end; closing it would wait for that.
        """
        engine = self._alive.pop(name, None)
        if engine is None:
            return False
        logger.error("engine {} is lost: {}", name, reason)
        self._score_log.write("engine_lost", engine=name, reason=reason)
        self._suspect.discard(name)
        if hangs:
            self.hung = True
        else:
            self._to_close.append(engine)
        return True

    async def close(self) -> None:
        """Ends the threads; waits only seconds for a step that hangs."""
        await self._warm_ups.stop_saving()
        engines = (*self._alive.values(), *self._to_close)
        if not all(await asyncio.gather(*(engine.close() for engine in engines))):
            self.hung = True
