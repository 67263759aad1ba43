"""What a service looks like at one moment, for people and for metrics."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from miner.request import ActiveRequest


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


def take_snapshot(
    state: str,
    active: Sequence[ActiveRequest],
    engines: Sequence[str],
    *,
    suspect: Collection[str],
    backlog: Mapping[str, float],
    predicted_wait_s: float | None,
) -> ServiceSnapshot:
    """Counts admitted requests by transport and engine.

    Args:
        state: Name of the service's state.
        active: Admitted requests without an answer.
        engines: Names of all engines.
        suspect: Those of them with a step past its limit.
        backlog: Seconds by engine; those that are not in it are down.
        predicted_wait_s: Of a text task that arrives now.
    """
    held = Counter(request.engine for request in active)
    return ServiceSnapshot(
        state=state,
        active=Counter(request.request.transport for request in active),
        waiting=held[None],
        engines=[
            EngineSnapshot(name, name in backlog, name in suspect, held[name], backlog.get(name, 0))
            for name in engines
        ],
        predicted_wait_s=predicted_wait_s,
    )
