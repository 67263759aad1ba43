"""How a generation can end without a result."""

from collections.abc import Mapping


class GenerationEnded(Exception):
    """A generation ended without a result.

    Attributes:
        timings: Seconds of the stages that had run, in the order they ran.
    """

    timings: Mapping[str, float] = {}


class GenerationError(GenerationEnded):
    """This request failed; the engine goes on with the next one."""


class OutOfMemory(GenerationError):
    """This request failed because a stage needs more memory than is free."""


class GenerationStopped(GenerationEnded):
    """This request was given up between two stages: its deadline or its gate said no.

    Args:
        stage: The stage that was not started.
        reason: One sentence with the numbers that led to it.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"stopped before {stage}: {reason}")
        self.stage = stage
        self.reason = reason


class EngineDead(Exception):
    """The engine cannot serve any further request and the process should be restarted."""
