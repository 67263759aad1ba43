"""Which connections a server keeps: a clock and numbers in, decisions out."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace
from enum import Enum, auto


class Phase(Enum):
    """What a connection does at the moment. All but `WORK` wait for the client."""

    NEW = auto()
    """No byte has arrived."""
    HEAD = auto()
    """The headers of a request are incomplete."""
    BODY = auto()
    """The body of a request is incomplete."""
    WORK = auto()
    """A whole request has arrived, and the miner has not answered it."""
    WRITE = auto()
    """An answer is there; the client does not read it as fast as it is written."""
    DRAIN = auto()
    """The answer has been sent before the whole body arrived, which is discarded."""
    IDLE = auto()
    """A request has been answered, and the next has not begun."""
    CLOSING = auto()
    """The server has closed the connection; the client has not read what is left."""


_GROUP = {
    Phase.BODY: 0,
    Phase.WRITE: 0,
    Phase.IDLE: 1,
    Phase.NEW: 2,
    Phase.HEAD: 2,
    Phase.DRAIN: 2,
    Phase.CLOSING: 2,
}
"""Connections that move data, that have been served, and the others, newcomers among them."""


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections a server keeps, and how long it waits for their clients.

    Attributes:
        waiting: Connections that wait for their clients, at most. One more closes another.
        waiting_per_address: The same, of one address.
        requests: Whole requests that the miner works for, at most. One more is answered 503.
        requests_per_address: The same, of one address.
        head_s: Seconds for a request's headers, from the connection on or from its first byte.
        body_s: Seconds for its body. `BodyLimit`, which has an answer, comes first.
        write_s: Seconds in which a client must have read an answer.
        idle_s: Seconds without a next request, after which a connection is closed. Clients built
            on aiohttp, as validators are, close theirs after 15, so none is closed under a request.
        drain_s: Seconds for what comes after the end: the rest of a body that is discarded, the
            rest of an answer on a connection that is closed.
    """

    waiting: int = 1024
    waiting_per_address: int = 256
    requests: int = 512
    requests_per_address: int = 256
    head_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 60.0
    idle_s: float = 20.0
    drain_s: float = 5.0

    def within(self, open_files: int) -> "ConnectionLimits":
        """Returns limits that leave most of a process's file descriptors to others.

        Two servers with these limits, and what they accept at once, take half of them.
        """
        most = max(1, open_files // 8)
        counts = {
            field.name: min(getattr(self, field.name), most)
            for field in fields(self)
            if field.type is int
        }
        return replace(self, **counts)

    def seconds(self, phase: Phase) -> float | None:
        """How long a connection may stay in a phase; None in the miner's own."""
        match phase:
            case Phase.NEW | Phase.HEAD:
                return self.head_s
            case Phase.BODY:
                return self.body_s
            case Phase.WRITE:
                return self.write_s
            case Phase.IDLE:
                return self.idle_s
            case Phase.DRAIN | Phase.CLOSING:
                return self.drain_s
            case Phase.WORK:
                return None


@dataclass
class _Entry:
    address: str
    phase: Phase
    since: float


class _Waiting:
    """The waiting connections of one address in their groups, the longest waiting first."""

    def __init__(self) -> None:
        self._groups: tuple[dict[Hashable, None], ...] = ({}, {}, {})

    def __len__(self) -> int:
        return sum(map(len, self._groups))

    def group(self, phase: Phase) -> dict[Hashable, None]:
        return self._groups[_GROUP[phase]]

    def longest(self) -> Hashable:
        # Where several are as large, the first, which is not that of newcomers.
        largest = max(self._groups, key=len)
        return next(iter(largest))


class ConnectionBook:
    """Knows every connection of a server, and says which one has to go.

    A connection that waits for its client takes no place of a request: where there are too many,
    one of them is closed, never a newcomer. It is taken from the address that has most of them (the
    first to have as many); there from the largest of three groups, those that have been served,
    those that move data, and the others; of that group, the one that has waited longest. So neither
    silent connections nor slow bodies keep out a client that sends its request at once, even from
    the same address, nor do they end a connection of another kind.

    Args:
        limits: Numbers and seconds; may be changed later.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, limits: ConnectionLimits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._entries: dict[Hashable, _Entry] = {}
        self._working: Counter[str] = Counter()
        self._waiting: dict[str, _Waiting] = {}
        self._waiting_count = 0
        # Addresses by the number of their waiting connections: a flood asks for the largest often.
        self._by_count: dict[int, dict[str, None]] = {}
        self._largest = 0

    def __len__(self) -> int:
        return len(self._entries)

    def move(self, key: Hashable, address: str, phase: Phase) -> None:
        """Notes the phase of a connection, known or new; `network_of` made the address."""
        entry = self._entries.get(key)
        if entry is not None:
            if entry.phase is phase:
                return
            if (entry.phase, phase) == (Phase.NEW, Phase.HEAD):
                entry.phase = phase  # The first byte gives no more time.
                return
            self.remove(key)
        self._entries[key] = _Entry(address, phase, self._clock())
        if phase is Phase.WORK:
            self._working[address] += 1
        else:
            waiting = self._waiting.setdefault(address, _Waiting())
            waiting.group(phase)[key] = None
            self._recount(address, len(waiting) - 1, len(waiting))

    def remove(self, key: Hashable) -> None:
        """Forgets a connection."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        if entry.phase is Phase.WORK:
            self._working[entry.address] -= 1
            if not self._working[entry.address]:
                del self._working[entry.address]
            return
        waiting = self._waiting[entry.address]
        del waiting.group(entry.phase)[key]
        self._recount(entry.address, len(waiting) + 1, len(waiting))
        if not len(waiting):
            del self._waiting[entry.address]

    def crowded_out(self, address: str) -> Hashable | None:
        """Returns the connection that has to go because one of `address` has come, if any."""
        waiting = self._waiting.get(address)
        if waiting is not None and len(waiting) > self.limits.waiting_per_address:
            return waiting.longest()
        if self._waiting_count > self.limits.waiting:
            return self._waiting[next(iter(self._by_count[self._largest]))].longest()
        return None

    def has_place(self, key: Hashable, address: str) -> bool:
        """Whether the miner may work for the request of a connection, beside those of others."""
        entry = self._entries.get(key)
        own = entry is not None and entry.phase is Phase.WORK
        return (
            self._working.total() - own < self.limits.requests
            and self._working[address] - own < self.limits.requests_per_address
        )

    def overdue(self) -> list[tuple[Hashable, Phase]]:
        """The connections whose client has had its time, and their phases."""
        now = self._clock()
        found = []
        for key, entry in self._entries.items():
            seconds = self.limits.seconds(entry.phase)
            if seconds is not None and now - entry.since >= seconds:
                found.append((key, entry.phase))
        return found

    def _recount(self, address: str, before: int, after: int) -> None:
        self._waiting_count += after - before
        if before:
            same = self._by_count[before]
            del same[address]
            if not same:
                del self._by_count[before]
        if after:
            self._by_count.setdefault(after, {})[address] = None
        # Counts change by one.
        if after > self._largest or self._largest not in self._by_count:
            self._largest = after


def network_of(address: str) -> str:
    """Returns what counts as one address: of IPv6 the first 64 bits, which one host may own."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)).network_address)
