"""Order and fairness: the earliest deadline goes first, within a share of the horizon per caller.

The bounds are seconds of forecast work, not counts of requests: a count knows no speed.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping

ACTIVE_S = 60.0
"""A caller counts as active for so long after its last request."""


class FairShares:
    """How much of the machine's near future one caller may book.

    With `n` active callers each may book `horizon / (n + 1)` seconds, so that a newcomer always
    finds room. Beyond its share, a caller may book what still leaves such a share free. A caller
    that has nothing booked may always book one request.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[Hashable, float] = {}

    def note(self, caller: Hashable) -> None:
        """Counts a caller as active from now on."""
        now = self._clock()
        self._seen = {who: at for who, at in self._seen.items() if now - at < ACTIVE_S}
        self._seen[caller] = now

    def share(self, horizon_s: float) -> float:
        """Returns the seconds that one caller may book of a horizon."""
        return horizon_s / (len(self._seen) + 1)

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
        own, share = booked.get(caller, 0.0), self.share(horizon_s)
        if own == 0.0:
            return 0.0
        total = sum(booked.values())
        return min(own + seconds - share, total + seconds - (horizon_s - share))


def total_by(callers: Iterable[tuple[Hashable, float]]) -> Mapping[Hashable, float]:
    """Adds seconds up by caller."""
    totals: dict[Hashable, float] = {}
    for caller, seconds in callers:
        totals[caller] = totals.get(caller, 0.0) + seconds
    return totals
