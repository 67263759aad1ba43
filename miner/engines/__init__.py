"""Engines as the service sees them: one in this process, or one elsewhere."""

from collections.abc import Callable, Mapping
from typing import Protocol

from generation.errors import EngineDead
from generation.plan import Output, Part, Plan, Rung, Step, StepEvent, Turn
from generation.result import Generation
from generation.stage import Cutout
from protocol.tasks import Task


class EngineClient(Protocol):
    """One device that generates.

    Attributes:
        name: Unique among the engines of this miner.
        ladder: Quality levels, best first.
        outputs: What tasks can become.
        lanes: How many steps each lane runs at once.
    """

    name: str
    ladder: tuple[Rung, ...]
    outputs: frozenset[Output]
    lanes: Mapping[str, int]

    @property
    def machine(self) -> str:
        """What estimates are valid for: the preset and the device, in words."""

    async def start(self) -> None:
        """Loads the networks.

        Raises:
            SetupError: Something is missing, or they do not fit.
        """

    async def warm_up(self) -> Mapping[str, float]:
        """Generates at every rung, so that the first request meets a warm engine.

        Returns:
            Seconds by cost key.

        Raises:
            SetupError: A generation failed.
        """

    def route(
        self,
        task: Task,
        rung: Rung,
        output: Output = "splats",
        part: Part = "whole",
        pictures: int = 1,
    ) -> tuple[Step, ...]:
        """Returns the steps that a task takes at a rung to become splats or a mesh.

        A plan of the part "picture" may draw several pictures together.

        Raises:
            TaskError: The back end makes no such output, or the header of an image task's picture
                cannot be read.
        """

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
        """Runs a plan. Cancelling the caller gives up the request between two steps.

        Args:
            task: What to make.
            plan: How.
            start: What a plan of the part "object" starts from; None for others.
            seconds_left: Of the request's time, now; `plan.latest_start` counts on it.
            turn: Its place in every lane.
            on_event: Called in the event loop as steps start and end.
            on_made: Called in the event loop once only optional steps are left, with the object as
                it would be returned without them.

        Raises:
            GenerationStopped: A step still waited at its latest start.
            GenerationError: This request failed.
            TaskError: This request cannot be served.
            EngineDead: No further request can.
        """

    async def close(self) -> bool:
        """Ends the threads; returns whether all have ended: it does not wait for one that hangs."""


class EngineLost(EngineDead):
    """The process that held an engine is gone: no request is to blame for it."""


class RemoteEngine:
    """Base of engines in other processes. Once one is lost, `start` may be called again.

    Handing a request over takes time, so that one more of them is sent ahead to a lane that is
    about to be free.

    Attributes:
        on_lost: Called in the event loop with the reason once a started engine is lost, whether or
            not it has a request.
    """

    def __init__(self) -> None:
        self.on_lost: Callable[[str], None] = lambda reason: None
