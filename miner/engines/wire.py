"""What crosses to an engine in another process and back: durations, never moments of a clock.

Both sides run the same version of this package (`miner.engines.joining`), so values cross as they
are; errors are taken apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from generation.errors import (
    EngineDead,
    GenerationEnded,
    GenerationError,
    GenerationStopped,
    NoObject,
    OutOfMemory,
)
from generation.plan import Plan, StepEvent, Turn
from generation.result import Generation
from generation.scoring.score import Score
from generation.stage import Asset, Cutout
from protocol.errors import SetupError, TaskError
from protocol.tasks import Task

T = TypeVar("T")


@dataclass(frozen=True)
class Order:
    """A plan to run.

    Attributes:
        run: Number of the run, unique for one engine.
        task: What to make.
        plan: How.
        seconds_left: Of the request's time when it was sent.
        turn: Its place in every lane.
        start: The cut-out that a plan of the part "object" starts from.
    """

    run: int
    task: Task
    plan: Plan
    seconds_left: float
    turn: Turn
    start: Cutout | None


@dataclass(frozen=True)
class Placed:
    """The process of an engine, before it is connected.

    Attributes:
        machine: Its name.
        node: Its number in the cluster.
        process: Number of the process there.
        address: Host and port on which it waits for the front.
    """

    machine: str
    node: str
    process: int
    address: tuple[str, int]


@dataclass(frozen=True)
class Fault:
    """An error of a run.

    Attributes:
        kind: Its class, of those in `_ERRORS`; others are unexpected.
        words: What it was made from.
        timings: See `GenerationEnded`.
    """

    kind: str
    words: tuple[str, ...]
    timings: Mapping[str, float]


@dataclass(frozen=True)
class SetupFault:
    """A SetupError on the other side."""

    problem: str
    fix: str

    @classmethod
    def of(cls, error: SetupError) -> "SetupFault":
        """Takes an error apart."""
        return cls(error.problem, error.fix)

    def error(self) -> SetupError:
        """Returns the error again."""
        return SetupError(self.problem, fix=self.fix)


@dataclass(frozen=True)
class Stepped:
    """What happened to a step of a run."""

    run: int
    event: StepEvent


@dataclass(frozen=True)
class Made:
    """The object of a run before its optional steps."""

    run: int
    made: Generation


@dataclass(frozen=True)
class Scored:
    """The end of a run whose object is the one in `Made`, now with the score."""

    score: Score | None
    timings: Mapping[str, float]


@dataclass(frozen=True)
class Ended:
    """A run has ended.

    Attributes:
        run: Which.
        took_s: Seconds from the arrival of its order.
        result: What came of it.
    """

    run: int
    took_s: float
    result: Generation | Scored | Fault


@dataclass(frozen=True)
class Remembers:
    """Whether the encoding of a prompt is in the engine's memory."""

    prompt: str
    remembered: bool


@dataclass(frozen=True)
class Said:
    """A line of the engine's log."""

    level: str
    text: str


Message = Stepped | Made | Ended | Remembers | Said


def finished(made: Generation, before: Generation | None) -> Generation | Scored:
    """Returns a result; only what is new if the object itself was sent before."""
    if (
        before is not None
        and isinstance(before.made, Asset)
        and isinstance(made.made, Asset)
        and made.made.cloud is before.made.cloud
        and made.seen is before.seen
    ):
        return Scored(made.score, made.timings)
    return portable(made)


def with_score(made: Generation, scored: Scored) -> Generation:
    """Returns an object that was sent before as it is at the end of its run."""
    asset = replace(made.asset, score=scored.score)
    return replace(made, made=asset, timings=scored.timings)


_ERRORS: Mapping[str, type[Exception]] = {
    error.__name__: error
    for error in (EngineDead, GenerationError, GenerationStopped, NoObject, OutOfMemory, TaskError)
}


def fault_of(error: BaseException) -> Fault:
    """Takes an error of a run apart."""
    timings = dict(error.timings) if isinstance(error, GenerationEnded) else {}
    if isinstance(error, GenerationStopped):
        return Fault("GenerationStopped", (error.stage, error.reason), timings)
    return Fault(type(error).__name__, (str(error),), timings)


def error_of(fault: Fault) -> Exception:
    """Returns the error again; a RuntimeError in the place of one that nobody expects."""
    kind = _ERRORS.get(fault.kind)
    if kind is None:
        return RuntimeError(f"{fault.kind}: {' '.join(fault.words)}")
    error = kind(*fault.words)
    if isinstance(error, GenerationEnded):
        error.timings = dict(fault.timings)
    return error


def portable(value: T) -> T:
    """Returns a generation or a cut-out without what lies on a device."""
    result: Any = value
    match result:
        case Generation():
            result = replace(result, made=portable(result.made), seen=portable(result.seen))
        case Cutout():
            result = replace(result, on_device=None)
        case tuple():
            result = tuple(map(portable, result))
    return cast(T, result)
