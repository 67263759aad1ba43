"""What a service looks like at one moment, for people and for metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EngineSnapshot:
    """One engine.

    Attributes:
        name: Its name.
        up: Whether it is neither loading nor lost.
        suspect: Whether a step of it is past its limit.
        active: Admitted requests that it has.
        backlog_s: Seconds until it has done them and those that wait for any engine.
    """

    name: str
    up: bool
    suspect: bool
    active: int
    backlog_s: float


@dataclass(frozen=True)
class ServiceSnapshot:
    """The service.

    Attributes:
        state: Name of its state.
        active: Admitted requests without an answer, by transport.
        waiting: How many of them no engine has yet.
        engines: Every engine that the miner was given, also those that are lost.
        predicted_wait_s: Seconds that a text task that arrives now would wait beside its own steps;
            None while no engine can be used.
    """

    state: str
    active: Mapping[str, int]
    waiting: int
    engines: Sequence[EngineSnapshot]
    predicted_wait_s: float | None
