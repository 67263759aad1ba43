"""A request and its steps as they run: what an engine times and reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loguru import logger

from generation.errors import EngineDead, GenerationStopped
from generation.plan import Plan, StepEvent, StepEventKind, Turn
from generation.recovery import attempt
from generation.result import Generation
from protocol.tasks import Task

OnEvent = Callable[[StepEvent], None]
OnMade = Callable[[Generation], None]


@dataclass(frozen=True, eq=False)
class RequestRun:
    """A request in an engine.

    Attributes:
        task: What to make.
        plan: How.
        on_event: Receives what happens to its steps.
        turn: Its place in every lane.
        deadline: When it has no seconds left, on the engine's clock.
        start: What its first step takes; the task itself when None.
        timings: Seconds of the steps that have finished, by stage.
        on_made: Receives what is made once only optional steps are left.
    """

    task: Task
    plan: Plan
    on_event: OnEvent
    turn: Turn = (-math.inf, 0)
    deadline: float = math.inf
    start: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    on_made: OnMade = lambda made: None


class StepRun:
    """A step, from the moment when it asks for its lane to its end.

    Its methods report what happens. `attempt` runs in a thread, all others in the event loop.

    Args:
        request: The request.
        position: Index of the step in the request's plan.
        clock: Monotonic clock in seconds.

    Attributes:
        step: The step.
        asked: When it asked for its lane.
    """

    def __init__(self, request: RequestRun, position: int, clock: Callable[[], float]) -> None:
        self.step = request.plan.steps[position]
        self.asked = clock()
        self._request = request
        self._position = position
        self._clock = clock
        self._started: float | None = None
        self._ended: float | None = None
        self._retried = False

    @property
    def spare(self) -> float:
        """Seconds until its latest start, negative once that has passed; inf without one."""
        latest = self._request.plan.latest_start
        if not latest:
            return math.inf
        return self._request.deadline - self._clock() - latest[self._position]

    def start(self) -> None:
        """Notes that its thread begins.

        Raises:
            GenerationStopped: Its latest start has passed.
        """
        if self.spare < 0:
            raise self.stopped()
        self._started = self._clock()
        self._emit("started", waited_s=self._started - self.asked)

    def attempt(self, work: Callable[[], Any], drop_caches: Callable[[], None]) -> Any:
        """Does its work; see `recovery.attempt`."""

        def before_retry() -> None:
            self._retried = True
            drop_caches()

        try:
            return attempt(self.step.stage, work, before_retry)
        finally:
            self._ended = self._clock()

    def end(self, error: BaseException | None) -> None:
        """Notes that its thread has ended, with an error or a result."""
        started = self.asked if self._started is None else self._started
        ran = (self._clock() if self._ended is None else self._ended) - started
        waited = started - self.asked
        if error is not None:
            fatal = isinstance(error, EngineDead)
            self._emit("failed", ran_s=ran, waited_s=waited, fatal=fatal, error=_first_line(error))
            return
        timings, stage = self._request.timings, self.step.stage
        timings[stage] = timings.get(stage, 0.0) + ran
        self._emit("finished", ran_s=ran, waited_s=waited)

    def skip(self, reason: str) -> None:
        """Notes that it has been given up, if it has not been started."""
        if self._started is None:
            self._emit("skipped", waited_s=self._clock() - self.asked, error=reason)

    def stopped(self) -> GenerationStopped:
        """Returns the error for a step whose latest start has passed."""
        now = self._clock()
        left = self._request.deadline - now
        latest = self._request.plan.latest_start[self._position]
        return GenerationStopped(
            self.step.stage,
            f"{left:.2f} s are left and it had to start with at least {latest:.2f} s left; "
            f"it waited {now - self.asked:.2f} s for lane {self.step.lane}",
        )

    def _emit(
        self,
        kind: StepEventKind,
        *,
        ran_s: float = 0.0,
        waited_s: float,
        fatal: bool = False,
        error: str = "",
    ) -> None:
        event = StepEvent(
            kind, self._position, self.step, ran_s, waited_s, self._retried, fatal, error
        )
        try:
            self._request.on_event(event)
        except Exception:
            # A listener's fault must not cost the request its result or the lane its thread.
            logger.exception("a listener failed on {}", event)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
