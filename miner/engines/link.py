"""The way to an engine in another process, and what the front keeps of it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from generation.plan import Plan, StepEvent
from generation.result import Generation
from miner.engines.joining import Identity
from miner.engines.wire import Message, Order, SetupFault


class LinkLost(Exception):
    """The process at the other end of a link has ended, or does not answer."""


class Link(Protocol):
    """The way to one `EngineHost`; its methods raise `LinkLost`.

    Attributes:
        place: Where the engine runs, in words.
    """

    place: str

    async def identify(self, settings: str, models_dir: str | None) -> Identity | SetupFault:
        """See `EngineHost`."""

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        """See `EngineHost`."""

    async def warm_up(self) -> Mapping[str, float] | SetupFault:
        """See `EngineHost`."""

    async def echo(self, size: int) -> NDArray[np.uint8]:
        """See `EngineHost`."""

    async def poll(self) -> list[Message]:
        """See `EngineHost`."""

    def run(self, order: Order) -> None:
        """Sends an order, and does not wait."""

    def cancel(self, run: int) -> None:
        """Takes an order back, and does not wait."""

    def kill(self) -> None:
        """Ends the process at the other end."""


@dataclass(eq=False)
class LinkedRun:
    """A run from its order to its end and that of its last step.

    Attributes:
        plan: With its step `hand_over`.
        on_event: Receives what happens to its steps.
        on_made: Receives the object before its optional steps.
        end: Is set to what came of it, with the engine's seconds.
        running: Whether a step of it runs.
        on_its_way: Whether its step `hand_over` runs.
        left: Whether nobody waits for its end.
        ended: Whether the engine starts no further step of it.
        before: The object before its optional steps.
    """

    plan: Plan
    on_event: Callable[[StepEvent], None]
    on_made: Callable[[Generation], None]
    end: "asyncio.Future[tuple[Generation | Exception, float]]"
    running: bool = False
    on_its_way: bool = False
    left: bool = False
    ended: bool = False
    before: Generation | None = None


@dataclass(eq=False)
class FarProcess:
    """What one process is to the front, from its start to its loss.

    Attributes:
        link: The way there.
        limit_s: Seconds within which it has to answer a poll; None while it loads and warms up,
            which may hold its interpreter.
        patience: What ends the present poll.
        listening: Takes its messages in.
        runs: What it has, by number.
        remembered: Prompts whose encodings it has in memory.
    """

    link: Link
    limit_s: float | None = None
    patience: asyncio.Timeout | None = None
    listening: "asyncio.Task[None] | None" = None
    runs: dict[int, LinkedRun] = field(default_factory=dict)
    remembered: set[str] = field(default_factory=set)
