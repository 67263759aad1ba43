"""An engine in a process of its own: what it does for the miner's front, and what it reports.

Everything is called from one event loop. Nothing here knows what carries calls and messages.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from generation.engine import Engine
from generation.plan import StepEvent
from generation.result import Generation
from generation.settings import GenerationSettings
from miner.engines.joining import Identity, identity_of
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
    fault_of,
    finished,
    portable,
)
from miner.surroundings import settle
from protocol.errors import SetupError
from protocol.tasks import TextTask

if TYPE_CHECKING:
    from loguru import Message as LogMessage

BEAT_S = 1.0
"""Most seconds that `poll` waits: an empty answer tells the front that the engine lives."""

ORPHANED_S = 120.0
"""An engine that nobody has polled for so long has lost its front, and ends its process."""

MOST_LINES = 1000
"""Log lines that wait for the front; later ones are lost."""

MOST_CALLED_OFF = 1000
"""Runs whose call to end is remembered: it may arrive before the order, which is larger."""

MakeEngine = Callable[[GenerationSettings, Path | None], Engine]


def _make_engine(settings: GenerationSettings, models_dir: Path | None) -> Engine:
    return Engine(settings, models_dir=models_dir, progress=False)


class EngineHost:
    """Holds one engine, and queues what the front should know.

    Args:
        make_engine: Makes the engine.
        clock: Monotonic clock, in seconds.
        leave: Ends the process.
    """

    def __init__(
        self,
        *,
        make_engine: MakeEngine = _make_engine,
        clock: Callable[[], float] = time.monotonic,
        leave: Callable[[], None] = lambda: os._exit(1),
    ) -> None:
        self._make_engine = make_engine
        self._clock = clock
        self._leave = leave
        self._engine: Engine | None = None
        self._messages: list[Message] = []
        self._news = asyncio.Event()
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._called_off: deque[int] = deque(maxlen=MOST_CALLED_OFF)
        self._remembered: set[str] = set()
        self._orphaned: asyncio.TimerHandle | None = None

    async def take_core(self, number: int) -> None:
        """Runs on one core alone from now on.

        Args:
            number: Of the core, counted from 0 among those that this process may use.
        """
        _take_core(number)

    async def identify(self, settings: str, models_dir: str | None) -> Identity | SetupFault:
        """Says what this side runs; loads nothing.

        Args:
            settings: The preset, as JSON.
            models_dir: The models folder; this machine's default one when None.
        """
        try:
            return identity_of(settings, _path(models_dir))
        except SetupError as error:
            return SetupFault.of(error)

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        """Loads the networks; returns the device in words. Takes what `identify` takes."""
        try:
            settle()
            preset = GenerationSettings.model_validate_json(settings)
            self._engine = self._make_engine(preset, _path(models_dir))
            await self._engine.start()
        except SetupError as error:
            return SetupFault.of(error)
        from generation.loading import device_name

        return device_name(preset.device)

    async def warm_up(self) -> Mapping[str, float] | SetupFault:
        """Generates at every rung; returns seconds by cost key."""
        try:
            return await self._loaded.warm_up()
        except SetupError as error:
            return SetupFault.of(error)

    async def run(self, order: Order) -> None:
        """Begins to run a plan; its end is a message."""
        if order.run in self._called_off:
            self._say(Ended(order.run, 0.0, fault_of(asyncio.CancelledError())))
            return
        self._runs[order.run] = asyncio.create_task(self._run(order))

    async def cancel(self, run: int) -> None:
        """Gives a run up between two steps; the step that runs still reports its end."""
        task = self._runs.pop(run, None)
        if task is not None:
            task.cancel()
        else:  # It has ended, or its order is still on its way.
            self._called_off.append(run)

    async def echo(self, size: int) -> NDArray[np.uint8]:
        """Returns as many bytes, which shows what the way back takes."""
        return np.ones(size, np.uint8)

    async def poll(self) -> list[Message]:
        """Returns what has happened since the last call; waits for it, at most `BEAT_S`."""
        loop = asyncio.get_running_loop()
        if self._orphaned is not None:
            self._orphaned.cancel()
        self._orphaned = loop.call_later(ORPHANED_S, self._leave)
        if not self._messages:
            self._news.clear()
            beat = loop.call_later(BEAT_S, self._news.set)
            try:
                await self._news.wait()
            finally:
                beat.cancel()
        self._forget()
        messages, self._messages = self._messages, []
        return messages

    async def close(self) -> None:
        """Ends the engine's threads."""
        if self._orphaned is not None:
            self._orphaned.cancel()
        for task in self._runs.values():
            task.cancel()
        if self._engine is not None:
            await self._engine.close()

    @property
    def _loaded(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the engine was used before it was loaded")
        return self._engine

    async def _run(self, order: Order) -> None:
        arrived = self._clock()
        before: Generation | None = None
        result: Generation | Scored | Fault

        def on_made(made: Generation) -> None:
            nonlocal before
            before = made
            self._say(Made(order.run, portable(made)))

        try:
            made = await self._loaded.run(
                order.task,
                order.plan,
                start=order.start,
                seconds_left=order.seconds_left,
                turn=order.turn,
                on_event=lambda event: self._on_event(order, event),
                on_made=on_made,
            )
            result = finished(made, before)
        except asyncio.CancelledError as error:
            result = fault_of(error)
            raise
        except Exception as error:
            result = fault_of(error)
        finally:
            self._runs.pop(order.run, None)
            self._say(Ended(order.run, self._clock() - arrived, result))

    def _on_event(self, order: Order, event: StepEvent) -> None:
        self._say(Stepped(order.run, event))
        task = order.task
        if event.step.stage == "prompt" and event.kind == "finished" and isinstance(task, TextTask):
            self._note(task.prompt)

    def _note(self, prompt: str) -> None:
        if prompt not in self._remembered and self._loaded.remembers(prompt):
            self._remembered.add(prompt)
            self._say(Remembers(prompt, True))

    def _forget(self) -> None:
        for prompt in [p for p in self._remembered if not self._loaded.remembers(p)]:
            self._remembered.remove(prompt)
            self._say(Remembers(prompt, False))

    def _say(self, message: Message) -> None:
        self._messages.append(message)
        self._news.set()

    def send_log(self, level: str) -> None:
        """Sends the log of this process to the front instead of to the terminal, from now on."""
        loop = asyncio.get_running_loop()
        waiting = 0

        def take(level: str, text: str) -> None:
            nonlocal waiting
            waiting -= 1
            self._say(Said(level, text))

        def write(message: "LogMessage") -> None:
            nonlocal waiting
            if waiting < MOST_LINES and not loop.is_closed():
                waiting += 1
                loop.call_soon_threadsafe(take, message.record["level"].name, str(message).rstrip())

        logger.remove()
        logger.add(write, level=level, format="{message}", diagnose=False, backtrace=False)


def _path(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _take_core(number: int) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # It has ended.
            os.sched_setaffinity(int(thread), {cores[number % len(cores)]})
