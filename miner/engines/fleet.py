"""The engines of a miner: which can be used, which are suspected to hang, lost or coming back."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from loguru import logger

from generation.plan import Part, Rung, Step
from miner.engines import EngineClient, RemoteEngine
from miner.engines.warming_up import WarmUps
from miner.request import Request
from miner.scheduling.restarts import Restarts
from miner.scheduling.watchdog import Overrun
from miner.score.log import ScoreLog
from protocol.errors import SetupError


class Fleet:
    """Starts engines, watches their steps, starts lost ones again, and closes them.

    Args:
        engines: Not started yet; their names are different.
        warm_ups: Warms each of them up.
        score_log: Receives a line when one is suspect, comes back, is lost or is started again.
        clock: Monotonic clock, in seconds.

    Attributes:
        names: Of all engines, those that are lost included.
        hung: Whether a thread is left that will not end: the process must end by `os._exit`.
        on_ready: Receives each engine that can be used from now on.
        on_lost: Receives the name of an engine that has ended by itself, and why.
        on_given_up: Is called when an engine will not come back any more.
    """

    def __init__(
        self,
        engines: Sequence[EngineClient],
        warm_ups: WarmUps,
        score_log: ScoreLog,
        clock: Callable[[], float],
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._any = engines[0]
        self._warm_ups = warm_ups
        self._score_log = score_log
        self._started = False
        self._up: set[str] = set()
        self._suspect: set[str] = set()
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._failed: dict[str, Exception] = {}
        self._restarts = {name: Restarts(clock) for name in self._engines}
        self._to_close: list[EngineClient] = []
        self.names = tuple(self._engines)
        self.hung = False
        self.on_ready: Callable[[EngineClient], None] = lambda engine: None
        self.on_lost: Callable[[str, str], None] = lambda name, reason: None
        self.on_given_up: Callable[[], None] = lambda: None
        for engine in engines:
            if isinstance(engine, RemoteEngine):
                engine.on_lost = partial(self._report, engine.name)

    def __getitem__(self, name: str) -> EngineClient:
        return self._engines[name]

    @property
    def ended(self) -> bool:
        """Whether it has started, and none serves or may serve again."""
        return self._started and not self._up | self._starting.keys()

    @property
    def suspect(self) -> frozenset[str]:
        """The engines with a step past its limit."""
        return frozenset(self._suspect)

    @property
    def usable(self) -> bool:
        """Whether there is one that is neither lost nor suspect."""
        return not self._up <= self._suspect

    @property
    def renewable(self) -> Sequence[str]:
        """The engines that serve and can be started again."""
        return [name for name in self._engines if name in self._up and self._is_remote(name)]

    def route(
        self,
        request: Request,
        rung: Rung,
        part: Part,
        pictures: int = 1,
        engine: str | None = None,
    ) -> tuple[Step, ...]:
        """Returns the steps of a request; see `RequestRoute`."""
        chosen = self._engines.get(engine or "", self._any)
        return chosen.route(request.task, rung, request.output, part, pictures)

    async def start(self) -> None:
        """Loads them and warms them up, beside each other; returns once one of them can be used.

        The others follow by themselves. One that cannot start is left out, or tried again if it has
        a process of its own.

        Raises:
            SetupError: None of them can start.
        """
        for engine in self._engines.values():
            self._starting[engine.name] = asyncio.create_task(self._first(engine))
        starting = set(self._starting.values())
        try:
            while starting and not self._up:
                _, starting = await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self._stop_starting()
            raise
        if not self._up and self._failed and not self._starting:
            raise next(iter(self._failed.values()))
        for name in list(self._failed):
            self._leave_out(name)
        self._started = True
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
        """Takes an engine out; one with a process of its own is started again.

        Args:
            name: Of the engine.
            reason: Why it cannot be used.
            hangs: One of its threads does not end; closing it would wait for that.

        Returns:
            False if it was out already.
        """
        if name not in self._up:
            return False
        logger.error("engine {} is lost: {}", name, reason)
        self._score_log.write("engine_lost", engine=name, reason=reason)
        self._up.discard(name)
        self._suspect.discard(name)
        if self._is_remote(name):
            self._starting[name] = asyncio.create_task(self._again(self._engines[name]))
        elif hangs:
            self.hung = True
            del self._engines[name]
        else:
            self._to_close.append(self._engines.pop(name))
        return True

    async def renew(self, name: str) -> bool:
        """Ends an engine that has nothing to do, and starts it again.

        Engines that wait for room are not tried meanwhile: they would take the place that it
        leaves.

        Returns:
            Whether it serves again. If not, it is tried again as a lost one.
        """
        waiting = {
            other: task
            for other, task in self._starting.items()
            if self._is_remote(other) and not self._restarts[other].has_served
        }
        for task in waiting.values():
            task.cancel()
        self._up.discard(name)
        renewing = asyncio.create_task(self._renew(self._engines[name], waiting.values()))
        self._starting[name] = renewing
        for other in waiting:
            trying = self._again(self._engines[other], after=renewing)
            self._starting[other] = asyncio.create_task(trying)
        await asyncio.wait({renewing})
        return name in self._up

    async def close(self) -> None:
        """Ends the threads; waits only seconds for a step that hangs."""
        await self._stop_starting()
        await self._warm_ups.stop_saving()
        engines = (*self._engines.values(), *self._to_close)
        if not all(await asyncio.gather(*(engine.close() for engine in engines))):
            self.hung = True

    async def _first(self, engine: EngineClient) -> None:
        """Starts an engine for the first time."""
        try:
            await self._bring_up(engine)
        except Exception as error:
            del self._starting[engine.name]
            self._failed[engine.name] = error
            if self._up:
                self._leave_out(engine.name)

    def _leave_out(self, name: str) -> None:
        """Goes on without an engine that did not start."""
        error = self._failed.pop(name)
        self._explain(error, f"engine {name} does not start, the others serve")
        if self._is_remote(name):
            self._starting[name] = asyncio.create_task(self._again(self._engines[name]))
        else:
            self._give_up(name)

    async def _renew(
        self, engine: EngineClient, called_off: "Collection[asyncio.Task[None]]"
    ) -> None:
        if called_off:
            await asyncio.wait(called_off)
        try:
            await engine.close()
            await self._bring_up(engine)
        except Exception as error:
            self._explain(error, f"engine {engine.name} does not start again")
            self._starting[engine.name] = asyncio.create_task(self._again(engine))
        else:
            logger.info("engine {} is renewed and serves again", engine.name)

    async def _again(
        self, engine: EngineClient, *, after: "asyncio.Task[None] | None" = None
    ) -> None:
        """Starts an engine again, more and more slowly, until it serves or is given up."""
        if after is not None:
            await asyncio.wait({after})
        restarts = self._restarts[engine.name]
        began = restarts.lost()
        await engine.close()
        while True:
            await asyncio.sleep(restarts.pause_s)
            try:
                await self._bring_up(engine)
            except Exception as error:
                restarts.failed()
                self._explain(error, f"engine {engine.name} does not start again")
                if not self._up and all(self._restarts[name].hopeless for name in self._starting):
                    self._give_up_all()
                    return
            else:
                seconds = restarts.served() - began
                logger.info("engine {} serves again after {:.0f} s", engine.name, seconds)
                self._score_log.write("engine_restarted", engine=engine.name, seconds=seconds)
                return

    @staticmethod
    def _explain(error: Exception, what: str) -> None:
        if isinstance(error, SetupError):
            logger.error("{}: {}", what, error)
        else:
            logger.opt(exception=error).error("{}", what)

    async def _bring_up(self, engine: EngineClient) -> None:
        await engine.start()
        await self._warm_ups.run(engine)
        self._restarts[engine.name].served()
        self._starting.pop(engine.name, None)
        self._up.add(engine.name)
        self.on_ready(engine)

    def _give_up(self, name: str) -> None:
        self._starting.pop(name, None)
        self._to_close.append(self._engines.pop(name))
        self.on_given_up()

    def _give_up_all(self) -> None:
        """Gives all up together: one alone would be missing once another has come back."""
        for name, task in list(self._starting.items()):
            if task is not asyncio.current_task():
                task.cancel()
            self._give_up(name)

    def _report(self, name: str, reason: str) -> None:
        if name in self._up:
            self.on_lost(name, reason)

    def _is_remote(self, name: str) -> bool:
        return isinstance(self._engines.get(name), RemoteEngine)

    async def _stop_starting(self) -> None:
        tasks = set(self._starting.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
