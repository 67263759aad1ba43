"""Order and fairness: the earliest deadline goes first, within a share of the horizon per caller.

The bounds are seconds of forecast work, not counts of requests: a count knows no speed.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from math import exp

ACTIVE_S = 60.0
"""A caller counts as active for so long after its last request, and what it has booked is forgotten
with this time constant."""


class FairShares:
    """How much of the machine's near future one caller may book.

    With `n` active callers each may book `horizon / (n + 1)` seconds, so that a newcomer always
    finds room. Beyond its share, a caller may book what still leaves such a share free. A caller
    that has nothing booked may always book one request.

    A caller floods if it has booked more than its share of the last minute, and more than all
    others together. It gets a better rung than the lowest only within these bounds. All others may
    use the whole horizon and go first: they would otherwise wait behind the flood, and the more of
    their requests wait, the sooner their share is full.

    Args:
        clock: Monotonic clock, in seconds.
        sole: Whether there can be only one caller: then nothing is kept for another.
    """

    def __init__(self, clock: Callable[[], float], *, sole: bool = False) -> None:
        self._clock = clock
        self._sole = sole
        self._seen: dict[Hashable, float] = {}
        self._used: dict[Hashable, tuple[float, float]] = {}

    def note(self, caller: Hashable) -> None:
        """Counts a caller as active from now on."""
        now = self._clock()
        self._seen = {who: at for who, at in self._seen.items() if now - at < ACTIVE_S}
        self._seen[caller] = now
        self._used = {who: used for who, used in self._used.items() if who in self._seen}

    def book(self, caller: Hashable, seconds: float) -> None:
        """Remembers that a request was admitted.

        Args:
            caller: Whose.
            seconds: Of the lane that it uses most; with several engines, divided by their number.
        """
        self._used[caller] = (self._recent(caller) + seconds, self._clock())

    def floods(self, caller: Hashable) -> bool:
        """Tells whether the machine is busy for this caller."""
        return caller == self._flood()

    def is_crowded_out(self, caller: Hashable) -> bool:
        """Tells whether the machine is busy for another caller."""
        return self._flood() not in (None, caller)

    def share(self, horizon_s: float) -> float:
        """Returns the seconds that one caller may book of a horizon."""
        return horizon_s if self._sole else horizon_s / (len(self._seen) + 1)

    def excess(
        self,
        caller: Hashable,
        seconds: float,
        booked: Mapping[Hashable, float],
        horizon_s: float,
    ) -> float:
        """Returns by how many seconds a booking is too large; 0 or less lets it in.

        Args:
            caller: Who books.
            seconds: What the new request adds.
            booked: Seconds booked by caller.
            horizon_s: Seconds that can be booked in all: the budget times the engines.
        """
        already, share = booked.get(caller, 0.0), self.share(horizon_s)
        if already == 0.0:
            return 0.0
        total = sum(booked.values())
        whole = self._sole or self.is_crowded_out(caller)
        room = horizon_s if whole else horizon_s - share
        return min(already + seconds - share, total + seconds - room)

    def _flood(self) -> Hashable | None:
        if self._sole:
            return None
        recent = {caller: self._recent(caller) for caller in self._used}
        bound = max(self.share(ACTIVE_S), 0.5 * sum(recent.values()))
        return next((caller for caller, seconds in recent.items() if seconds > bound), None)

    def _recent(self, caller: Hashable) -> float:
        used, at = self._used.get(caller, (0.0, 0.0))
        return used * exp(-max(0.0, self._clock() - at) / ACTIVE_S)


def total_by(callers: Iterable[tuple[Hashable, float]]) -> Mapping[Hashable, float]:
    """Adds seconds up by caller."""
    totals: dict[Hashable, float] = {}
    for caller, seconds in callers:
        totals[caller] = totals.get(caller, 0.0) + seconds
    return totals
