"""An engine in another process, as the service sees it.

The front keeps the only queue: it hands a plan over when the lane of its first step is about to be
free. What the way there and back takes is a last step of every plan, `hand_over`, whose seconds are
learned as those of any other step.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

from loguru import logger

from generation.engine import Engine
from generation.plan import Output, Part, Plan, Rung, Step, StepEvent, Turn
from generation.presets import variant
from generation.result import Generation
from generation.settings import GenerationSettings
from generation.stage import Cutout
from generation.weights.store import fetch_command
from miner.engines import EngineLost, RemoteEngine
from miner.engines.joining import Identity, identity_of, require_same
from miner.engines.link import FarProcess, Link, LinkedRun, LinkLost
from miner.engines.wire import (
    Ended,
    Fault,
    Made,
    Message,
    Order,
    Remembers,
    Said,
    Scored,
    SetupFault,
    Stepped,
    error_of,
    portable,
    with_score,
)
from protocol.errors import SetupError
from protocol.tasks import Task

T = TypeVar("T")

HAND_OVER = "hand_over"
"""The last step of every plan, and its lane."""

HAND_OVERS = 64
"""How many results may be on their way at once: more than the other lanes can have."""

SILENT_S = 20.0
"""Seconds without an answer to a poll after which an engine is lost; it answers once a second."""

BYTES_PER_GAUSSIAN = 14 * 4 + 16
"""Of a cloud in float32, and of its SPZ."""

MESH_BYTES, PICTURE_BYTES = 4_000_000, 2_700_000
"""Of a mesh with 50,000 triangles; of a cut-out with its picture, at 512 x 512."""

ECHOES = 3


class LinkedEngine(RemoteEngine):
    """An engine at the other end of a link.

    Args:
        settings: The preset, with the device as the other end calls it.
        open_link: Starts a process for it and returns the way there; raises SetupError.
        name: Unique among the engines of this miner.
        models_dir: The models folder; that machine's default one when None.
        identify: Says what this side runs.
        clock: Monotonic clock, in seconds.
        silent_s: After how many seconds without an answer it is lost.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        open_link: Callable[[], Awaitable[Link]],
        *,
        name: str,
        models_dir: Path | None = None,
        identify: Callable[[str, Path | None], Identity] = identity_of,
        clock: Callable[[], float] = time.monotonic,
        silent_s: float = SILENT_S,
    ) -> None:
        super().__init__()
        self.name = name
        self.settings = settings
        # Never started: it knows the steps, and the front loads no network.
        self._steps = Engine(settings, functions={}, remembers=self._remembers, progress=False)
        self.ladder, self.outputs = self._steps.ladder, self._steps.outputs
        self.lanes: Mapping[str, int] = {**self._steps.lanes, HAND_OVER: HAND_OVERS}
        self._open_link = open_link
        self._models_dir = models_dir
        self._identify = identify
        self._clock = clock
        self._silent_s = silent_s
        self._numbers = itertools.count()
        self._routes: dict[tuple[Step, ...], tuple[Step, ...]] = {}
        self._now: FarProcess | None = None
        self._device = ""

    @property
    def link(self) -> Link | None:
        """The way to its process, if it has one."""
        return None if self._now is None else self._now.link

    @property
    def machine(self) -> str:
        """What the estimates of an earlier run are valid for."""
        return f"{variant(self.settings)} on {self._device}, another process"

    async def start(self) -> None:
        """Starts a process, checks that it may join, and has it load the networks.

        Raises:
            SetupError: There is no room for it, it differs from the front, or it cannot load.
        """
        settings = self.settings.model_dump_json()
        folder = None if self._models_dir is None else str(self._models_dir)
        link = await self._open_link()
        try:
            there = _accepted(await link.identify(settings, folder))
            here = await asyncio.to_thread(self._identify, settings, self._models_dir)
            fetch = fetch_command(self.settings, self._models_dir)
            require_same(f"engine {self.name} on {link.place}", there, here, fetch)
            self._now = now = FarProcess(link)
            now.listening = asyncio.create_task(self._listen(now))
            self._device = _accepted(await link.load(settings, folder))
        except LinkLost as error:
            self._forget(link)
            raise self._not_started(error) from error
        except BaseException:
            self._forget(link)
            raise
        logger.info("engine {} is loaded on {}: {}", self.name, link.place, self._device)

    async def warm_up(self) -> Mapping[str, float]:
        """Has it generate at every rung, and measures the way back.

        Raises:
            SetupError: A generation failed, or the process ended.
        """
        now = self._connection()
        try:
            seconds = dict(_accepted(await now.link.warm_up()))
            for key, size in self._sizes().items():
                seconds[key] = min([await self._echo(now.link, size) for _ in range(ECHOES)])
        except LinkLost as error:
            self._forget(now.link)
            raise self._not_started(error) from error
        now.limit_s = self._silent_s
        if now.patience is not None:
            now.patience.reschedule(asyncio.get_running_loop().time() + self._silent_s)
        return seconds

    def route(
        self,
        task: Task,
        rung: Rung,
        output: Output = "splats",
        part: Part = "whole",
        pictures: int = 1,
    ) -> tuple[Step, ...]:
        """Returns the steps that a task takes at a rung, the way back the last one."""
        steps = self._steps.route(task, rung, output, part, pictures)
        whole = self._routes.get(steps)
        if whole is None:
            key = _key_of_way(rung, output, part)
            whole = self._routes[steps] = (*steps, Step(HAND_OVER, HAND_OVER, key))
        return whole

    async def run(
        self,
        task: Task,
        plan: Plan,
        *,
        start: Cutout | None,
        seconds_left: float,
        turn: Turn,
        on_event: Callable[[StepEvent], None],
        on_made: Callable[[Generation], None],
    ) -> Generation:
        """Runs a plan; see `EngineClient`.

        Raises:
            EngineLost: The process has ended.
        """
        now, number = self._connection(), next(self._numbers)
        run = LinkedRun(plan, on_event, on_made, asyncio.get_running_loop().create_future())
        now.runs[number] = run
        sent = self._clock()
        there = replace(
            plan,
            steps=plan.steps[:-1],
            latest_start=plan.latest_start[:-1],
            limit=plan.limit[:-1],
        )
        try:
            now.link.run(Order(number, task, there, seconds_left, turn, portable(start)))
            result, took_s = await run.end
        except asyncio.CancelledError:
            run.left = True
            if run.ended and not run.running:
                now.runs.pop(number, None)
            elif now is self._now:
                now.link.cancel(number)
            self._end_way(run, "failed", 0.0)
            raise
        now.runs.pop(number, None)
        if isinstance(result, LinkLost):
            raise EngineLost(str(result))
        way_s = max(0.0, self._clock() - sent - took_s)
        if isinstance(result, Exception):
            self._end_way(run, "failed", way_s)
            raise result
        self._end_way(run, "finished", way_s)
        return result

    async def close(self) -> bool:
        """Ends the process; returns True: none of its threads is left."""
        now = self._now
        if now is not None:
            self._lose(now, "it is closed", tell=False)
            await _stopped(now.listening)
        return True

    def _connection(self) -> FarProcess:
        if self._now is None:
            raise EngineLost(f"engine {self.name} has no process")
        return self._now

    def _remembers(self, prompt: str) -> bool:
        return self._now is not None and prompt in self._now.remembered

    async def _listen(self, now: FarProcess) -> None:
        """Takes messages in until the process is lost.

        No poll is called off while the process lives: its messages would be gone.
        """
        reason = f"it has not answered for {self._silent_s:.0f} s"
        try:
            while True:
                async with asyncio.timeout(now.limit_s) as now.patience:
                    messages = await now.link.poll()
                for message in messages:
                    self._take(now, message)
        except LinkLost as error:
            reason = str(error)
        except TimeoutError:
            pass
        except Exception as error:
            logger.exception("engine {} sent what cannot be read", self.name)
            reason = f"it sent what cannot be read: {type(error).__name__}"
        self._lose(now, reason, tell=True)

    def _take(self, now: FarProcess, message: Message) -> None:
        match message:
            case Stepped(number, event):
                self._step(now, number, event)
            case Made(number, made):
                if (run := now.runs.get(number)) is not None:
                    run.before = made
                    if not run.left:
                        run.on_made(run.before)
            case Ended():
                self._end(now, message)
            case Remembers(prompt, remembered):
                (now.remembered.add if remembered else now.remembered.discard)(prompt)
            case Said(level, text):
                logger.log(level, "engine {}: {}", self.name, text)

    def _step(self, now: FarProcess, number: int, event: StepEvent) -> None:
        run = now.runs.get(number)
        if run is None:
            return
        run.running = event.kind == "started"
        if run.left and run.ended and not run.running:
            del now.runs[number]
        # The way back begins with the end of the last step; its seconds are known once it ends.
        last = event.position == len(run.plan.steps) - 2
        goes_on = event.kind == "finished" or (event.step.optional and not event.fatal)
        run.on_event(event)
        if last and not run.running and goes_on and not run.left:
            run.on_its_way = True
            run.on_event(StepEvent("started", event.position + 1, run.plan.steps[-1]))

    @staticmethod
    def _end_way(run: LinkedRun, kind: Literal["finished", "failed"], seconds: float) -> None:
        if run.on_its_way:
            run.on_its_way = False
            position = len(run.plan.steps) - 1
            run.on_event(StepEvent(kind, position, run.plan.steps[-1], ran_s=seconds))

    def _end(self, now: FarProcess, ended: Ended) -> None:
        run = now.runs.get(ended.run)
        if run is None:
            return
        run.ended = True
        if run.left and not run.running:
            del now.runs[ended.run]
        if run.end.done():  # Its caller has left.
            return
        result: Generation | Exception
        match ended.result:
            case Fault() as fault:
                result = error_of(fault)
            case Scored() as scored if run.before is not None:
                result = with_score(run.before, scored)
            case Scored():
                result = RuntimeError("a score came without its object")
            case Generation() as made:
                result = made
        run.end.set_result((result, ended.took_s))

    def _lose(self, now: FarProcess, reason: str, *, tell: bool) -> None:
        """Forgets a process; everything that it had raises EngineLost."""
        if self._now is not now:
            return
        self._now = None
        runs, now.runs = now.runs, {}
        for run in runs.values():
            if not run.end.done():
                run.end.set_result((LinkLost(reason), 0.0))
        self._kill(now.link)
        if tell:
            self.on_lost(reason)

    def _forget(self, link: Link) -> None:
        """Ends a process that has not come to serve."""
        now = self._now
        if now is not None and now.link is link:
            self._lose(now, "it did not start", tell=False)
            if now.listening is not None:
                now.listening.cancel()
        else:
            self._kill(link)

    def _kill(self, link: Link) -> None:
        try:
            link.kill()
        except Exception:  # What follows a loss must not depend on it.
            logger.exception("the process of engine {} was not ended", self.name)

    def _not_started(self, error: LinkLost) -> SetupError:
        return SetupError(
            f"engine {self.name} ended while it started: {error}",
            fix="see the log above, and the memory of its machine",
        )

    async def _echo(self, link: Link, size: int) -> float:
        began = self._clock()
        await link.echo(size)
        return self._clock() - began

    def _sizes(self) -> Mapping[str, int]:
        """Returns about how many bytes come back, by cost key."""
        sizes = {_key_of_way(self.ladder[0], "splats", "picture"): PICTURE_BYTES}
        for rung in self.ladder:
            sizes[_key_of_way(rung, "splats", "whole")] = rung.gaussians * BYTES_PER_GAUSSIAN
            if "mesh" in self.outputs:
                sizes[_key_of_way(rung, "mesh", "whole")] = MESH_BYTES
        return sizes


def _key_of_way(rung: Rung, output: Output, part: Part) -> str:
    if part == "picture":
        return f"{HAND_OVER}:picture"
    return f"{HAND_OVER}:{'mesh' if output == 'mesh' else rung.gaussians}"


def _accepted(answer: T | SetupFault) -> T:
    if isinstance(answer, SetupFault):
        raise answer.error()
    return answer


async def _stopped(task: "asyncio.Task[None] | None") -> None:
    if task is not None and task is not asyncio.current_task():
        task.cancel()
        await asyncio.wait({task})
