"""Faults that a mock gateway injects into the calls of workers. Pure but for the chance."""

import random
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Literal

from miner.mock_gateway.replies import (
    GatewayRefusal,
    by_accept,
    gone,
    internal_error,
    unauthorized,
    unavailable,
)
from protocol.gateway import ADD_RESULT, GET_TASKS

Fault = Literal["unauthorized", "gone", "limited", "failed", "busy", "unstored", "lost", "slow"]
"""unauthorized: 401 for a good signature. gone: 410 for a live task. limited: 429. failed: 500, and
nothing is stored. busy: 503, as for a duplicate in flight. unstored: the assignment cannot be
stored, so 200 without tasks. lost: everything is stored, and the connection is cut without an
answer. slow: the body is read late."""

APPLIES: Mapping[str, tuple[Fault, ...]] = {
    GET_TASKS: ("unauthorized", "limited", "failed", "unstored", "lost", "slow"),
    ADD_RESULT: ("unauthorized", "gone", "limited", "failed", "busy", "lost", "slow"),
}


class FaultPlan:
    """Which call goes wrong, and how.

    Args:
        shares: The share of calls that have each fault, 0..1.
        chance: Returns 0..1.

    Attributes:
        injected: How often each fault has been injected, by route and fault.
    """

    def __init__(
        self,
        shares: Mapping[Fault, float] | None = None,
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shares = dict(shares or {})
        self._chance = chance
        self._next: dict[str, deque[Fault | None]] = {route: deque() for route in APPLIES}
        self.injected: Counter[tuple[str, Fault]] = Counter()

    def then(self, route: str, *faults: Fault | None) -> None:
        """Sets the faults of the next calls of a route, in order; None for a call without one."""
        for fault in faults:
            if fault is not None and fault not in APPLIES[route]:
                raise ValueError(f"{route} knows no fault {fault!r}; it has {APPLIES[route]}")
        self._next[route].extend(faults)

    def draw(self, route: str) -> Fault | None:
        """Returns the fault of a call that has arrived."""
        if self._next[route]:
            fault = self._next[route].popleft()
        else:
            fault = next(
                (each for each in APPLIES[route] if self._chance() < self._shares.get(each, 0.0)),
                None,
            )
        if fault is not None:
            self.injected[route, fault] += 1
        return fault


def refusal_of(fault: Fault | None, accept: str = "") -> GatewayRefusal | None:
    """Returns the error that a fault is answered with, if it is one."""
    match fault:
        case "unauthorized":
            return unauthorized("Invalid worker authentication")
        case "gone":
            return gone()
        case "limited":
            return GatewayRefusal(by_accept(429, accept))
        case "failed":
            return internal_error()
        case "busy":
            return unavailable("Result is already being processed; please retry")
    return None
