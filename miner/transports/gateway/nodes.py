"""Which node of the gateway to ask next, and when. Pure: a clock and numbers.

The miner asks one node at a time, with a pause between any two calls. Of the nodes that may be
asked it takes the one that lists the most queued tasks, then the one that it asked longest ago. A
node that had nothing rests, longer each time up to the idle pause; one that failed rests longer
still. A task belongs to the node that handed it out, so nothing is moved between nodes.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from urllib.parse import urlsplit

from miner.transports.gateway.addresses import base_address
from protocol.gateway import GatewayNode

FIRST_BACKOFF_S = 2.0
MAX_BACKOFF_S = 300.0
"""Seconds until a node that failed is asked again, doubled each time up to the second."""

JITTER = 1 / 3
"""A pause is longer or shorter by up to this share, so that workers do not ask in step."""

MOST_NODES = 32
"""Nodes that are known, those from lists of gateways included."""


@dataclass(frozen=True)
class Pauses:
    """Seconds between calls, on average.

    Attributes:
        poll_s: Between any two calls.
        idle_s: Until a node that has had no task for a while is asked again.
    """

    poll_s: float = 1.5
    idle_s: float = 7.5


@dataclass
class _Node:
    ask_after: float = -inf
    asked_at: float = -inf
    empty: int = 0
    failures: int = 0
    queued: int = 0

    @property
    def claim(self) -> tuple[int, float]:
        """Orders the nodes that may be asked; the largest is asked."""
        return self.queued, -self.asked_at


class Nodes:
    """Chooses the node to ask, and learns from what became of it.

    Args:
        addresses: Base addresses of the nodes.
        clock: Any clock, in seconds.
        pauses: Seconds between calls.
        discover: Whether nodes that a gateway lists are asked too.
        chance: Returns 0..1, for the jitter.
    """

    def __init__(
        self,
        addresses: Iterable[str],
        *,
        clock: Callable[[], float],
        pauses: Pauses | None = None,
        discover: bool = False,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._nodes = {address: _Node() for address in addresses}
        self._clock = clock
        self._pauses = pauses or Pauses()
        self._discover = discover
        self._chance = chance
        self._next_at = -inf

    @property
    def addresses(self) -> tuple[str, ...]:
        """The nodes that are known."""
        return tuple(self._nodes)

    def choose(self) -> str | None:
        """Returns the node to ask now, and notes that it is asked; None if it is too early."""
        now = self._clock()
        ready = [each for each, node in self._nodes.items() if node.ask_after <= now]
        if now < self._next_at or not ready:
            return None
        chosen = max(ready, key=lambda each: self._nodes[each].claim)
        self._nodes[chosen].asked_at = now
        self._pause()
        return chosen

    def wait(self) -> float:
        """Returns the seconds until a node may be asked."""
        first = min(node.ask_after for node in self._nodes.values())
        return max(0.0, max(first, self._next_at) - self._clock())

    def gave(self, address: str, tasks: int) -> None:
        """Notes an answer with this many tasks."""
        node = self._nodes[address]
        node.failures = 0
        node.empty = 0 if tasks else node.empty + 1
        pause = min(self._pauses.idle_s, self._pauses.poll_s * 2.0 ** min(node.empty, 10))
        node.ask_after = self._clock() + self._varied(pause) if node.empty else -inf
        self._pause()

    def failed(self, address: str, *, least_s: float = 0.0) -> float:
        """Notes a call without a usable answer, and returns the seconds of back-off.

        Args:
            address: The node; unknown ones are ignored, such as those of an earlier run.
            least_s: Seconds that it has to rest at least.
        """
        node = self._nodes.get(address)
        if node is None:
            return 0.0
        backoff = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(node.failures, 30))
        backoff = max(least_s, self._varied(backoff))
        node.failures += 1
        node.ask_after = max(node.ask_after, self._clock() + backoff)
        self._pause()
        return backoff

    def listed(self, listed_by: str, entries: Iterable[GatewayNode]) -> None:
        """Notes what a gateway says of its nodes: how many tasks are queued, and new ones."""
        for entry in entries:
            try:
                address = address_of(entry, listed_by)
            except ValueError:
                continue
            if address not in self._nodes:
                if not self._discover or len(self._nodes) >= MOST_NODES:
                    continue
                self._nodes[address] = _Node()
            self._nodes[address].queued = entry.available_tasks

    def _pause(self) -> None:
        """Begins the pause between two calls: with a call, and again with its answer."""
        self._next_at = self._clock() + self._varied(self._pauses.poll_s)

    def _varied(self, seconds: float) -> float:
        return seconds * (1.0 + JITTER * (2.0 * self._chance() - 1.0))


def address_of(node: GatewayNode, listed_by: str) -> str:
    """Returns the base address of a listed node, with the scheme of the gateway that listed it.

    Raises:
        ValueError: The entry has no usable host.
    """
    scheme = urlsplit(listed_by).scheme
    host = f"[{node.domain}]" if ":" in node.domain else node.domain
    # What the operator has allowed for the node that lists it is not allowed for any other host.
    return base_address(f"{scheme}://{host}:{node.http_port}")


class MinuteLimit:
    """Limits the calls in any 60 s, because it is unknown when the server's minutes begin.

    Args:
        most: Calls in 60 s.
        clock: Any clock, in seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._times: list[float] = []

    def reserve(self) -> float:
        """Takes the next free moment, and returns the seconds until it."""
        now = self._clock()
        self._times = [at for at in self._times if at > now - 60.0]
        at = now
        if len(self._times) >= self._most:
            # Two calls may be closer to each other when they arrive than when they were sent.
            at = max(now, self._times[-self._most] + 61.0)
        self._times.append(at)
        return at - now
