"""This machine's clock as it may be set while the miner runs, and what callers' clocks say of it.

Pure: clocks are passed in.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from miner.transports.push.checks import NANOSECONDS

STEP_S = 1.0
"""A smaller difference from the monotonic clock between two requests is no step."""

OPINION_S = 600.0
"""How long a caller's clock speaks for or against ours."""

MAX_CALLERS = 1000


class WallClock:
    """The time of day, and this process' start expressed on it as it is now.

    The start is anchored on the monotonic clock: where the machine's clock was wrong at the start
    and is corrected, the start moves with it.

    Args:
        wall_ns: Nanoseconds since the epoch.
        monotonic: Seconds.
    """

    def __init__(self, wall_ns: Callable[[], int], monotonic: Callable[[], float]) -> None:
        self._wall_ns = wall_ns
        self._monotonic = monotonic
        self._started = monotonic()
        self._offset_s = self._offset()

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        return self._wall_ns()

    def started_ns(self) -> int:
        """The start of this process in nanoseconds since the epoch, by the clock of now."""
        return self._wall_ns() - int((self._monotonic() - self._started) * NANOSECONDS)

    def step_s(self) -> float:
        """Seconds that the clock was set forward (back: less than 0) since the last call, or 0."""
        offset = self._offset()
        step, self._offset_s = offset - self._offset_s, offset
        return step if abs(step) >= STEP_S else 0.0

    def _offset(self) -> float:
        return self._wall_ns() / NANOSECONDS - self._monotonic()


@dataclass(frozen=True)
class _Opinion:
    at: float
    ahead_s: float
    agrees: bool


class CallersClocks:
    """Compares the clocks of verified callers with ours.

    Args:
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._opinions: OrderedDict[str, _Opinion] = OrderedDict()
        self._told_at = -OPINION_S

    def observe(self, hotkey: str, ahead_s: float, *, agrees: bool) -> None:
        """Notes a verified nonce.

        Args:
            hotkey: Who signed it.
            ahead_s: Seconds that it is ahead of our clock.
            agrees: Whether it was within the window. A caller that agreed lately counts as
                agreeing: a message outside the window may be an old one that somebody replays.
        """
        now = self._clock()
        last = self._opinions.get(hotkey)
        if not agrees and last is not None and last.agrees and now - last.at < OPINION_S:
            return
        self._opinions[hotkey] = _Opinion(now, ahead_s, agrees)
        self._opinions.move_to_end(hotkey)
        if len(self._opinions) > MAX_CALLERS:
            self._opinions.popitem(last=False)

    def warning(self) -> str | None:
        """Returns a sentence where most callers' clocks differ from ours, once in ten minutes."""
        now = self._clock()
        if now - self._told_at < OPINION_S:
            return None
        recent = [opinion for opinion in self._opinions.values() if now - opinion.at < OPINION_S]
        apart = [opinion.ahead_s for opinion in recent if not opinion.agrees]
        if 2 * len(apart) <= len(recent):
            return None
        self._told_at = now
        offset = median(apart)
        way = "ahead of" if offset > 0 else "behind"
        return (
            f"the clocks of {len(apart)} of {len(recent)} callers are {abs(offset):.1f} s (median) "
            f"{way} this machine's, and their requests are refused; if it is this machine's that "
            "is wrong: timedatectl set-ntp true (no restart is needed)"
        )
