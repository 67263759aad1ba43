"""How a generation can end without a result: this request failed, or the engine is dead."""

from collections.abc import Mapping


class GenerationEnded(Exception):
    """A generation ended without a result.

    Attributes:
        timings: Seconds of the stages that had finished, in the order in which they began.
    """

    timings: Mapping[str, float] = {}


class GenerationError(GenerationEnded):
    """This request failed; the engine goes on with the next one."""


class NoObject(GenerationError):
    """This request failed because its picture shows no object."""


class OutOfMemory(GenerationError):
    """This request failed because a stage needs more memory than is free."""


class GenerationStopped(GenerationEnded):
    """This request was given up between two steps: its time no longer sufficed.

    Args:
        stage: The stage that was not started.
        reason: One sentence with the numbers that led to it.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"stopped before {stage}: {reason}")
        self.stage = stage
        self.reason = reason


class EngineDead(GenerationEnded):
    """The engine cannot serve any further request and should be started again."""
