"""Who may call the axon, how often, with which headers. Pure: clocks and values, no Bittensor."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite

from miner.chain.metagraph import Chain
from miner.transports.connection_book import network_of
from miner.transports.push.refused import Refused
from miner.transports.refusals import Refusal

NANOSECONDS = 1_000_000_000
MIN_VERSION = 7_002_000
"""Bittensor 7.2.0. Nonces of older versions are not times, so their messages could be replayed."""

MAX_TIMEOUT_S = 6.0
"""Seconds that `timeout` may add to the age that Bittensor allows; it is not signed."""

MIN_AGE_S = 4.0
"""Seconds that a nonce may be old whatever the timeout, as in Bittensor."""

MAX_AGE_S = MIN_AGE_S + MAX_TIMEOUT_S
MAX_AHEAD_S = 4.0
"""Seconds that a caller's clock may be ahead of ours."""

CLOCK_AHEAD = "clock_ahead"
CLOCK_BEHIND = "clock_behind"

REFUSED_AT_ONCE = 120
REFUSED_PER_S = 2.0
"""Refused requests of one address, before it is told no more than that."""


@dataclass(frozen=True)
class Admission:
    """Which callers the miner serves.

    Attributes:
        min_stake: Least stake of a registered caller.
        allow_no_permit: Serve registered callers without a validator permit.
        allow_non_registered: Serve hotkeys that are not registered.
    """

    min_stake: float = 0.0
    allow_no_permit: bool = False
    allow_non_registered: bool = False

    def refusal(self, chain: Chain, hotkey: str) -> Refusal | None:
        """Returns why a hotkey is not served, or None.

        The hotkey is not verified yet, so nothing is remembered here.
        """
        neuron = chain.snapshot.neurons.get(hotkey)
        if neuron is None:
            if self.allow_non_registered:
                return None
            if chain.is_stale():
                return Refusal(
                    "chain_unavailable",
                    "the miner has not read the chain lately and serves the hotkeys of its last "
                    "reading only",
                )
            return Refusal("unknown_hotkey", "the hotkey is not registered on this subnet")
        if not neuron.validator_permit and not self.allow_no_permit:
            return Refusal("no_permit", f"uid {neuron.uid} has no validator permit")
        if neuron.stake < self.min_stake:
            return Refusal(
                "low_stake",
                f"uid {neuron.uid} has a stake of {neuron.stake:.2f}, the least is "
                f"{self.min_stake:.2f}",
            )
        return None


def check_headers(
    *, nonce: int | None, version: int | None, timeout: float | None, now: int, started: int
) -> float:
    """Checks what Bittensor trusts the caller with, and returns the timeout to be used.

    Args:
        nonce: The caller's time in nanoseconds since the epoch; signed.
        version: The caller's Bittensor version as an integer; not signed.
        timeout: Seconds; not signed.
        now: Our time in nanoseconds since the epoch.
        started: Since when nonces are remembered, on the same clock as `now`; an older one may
            have been used before.

    Raises:
        Refused: A header is out of range; names it.
    """
    if version is None or version < MIN_VERSION:
        raise Refused(401, "bad_version", "version is missing or before 7.2.0; update bittensor")
    if nonce is None:
        raise Refused(401, "bad_signature", "nonce is missing")
    if timeout is None or not isfinite(timeout) or timeout < 0.0:
        raise Refused(401, "bad_timeout", f"timeout is {timeout} s, not a positive number")
    timeout = min(timeout, MAX_TIMEOUT_S)
    ahead_s = (nonce - now) / NANOSECONDS
    if ahead_s > MAX_AHEAD_S:
        raise Refused(
            401,
            CLOCK_AHEAD,
            f"nonce lies {ahead_s:.1f} s in the future, the most is {MAX_AHEAD_S:.0f} s; "
            "set the caller's clock or this miner's",
        )
    before_start = nonce < started
    if -ahead_s > MIN_AGE_S + timeout:
        raise Refused(
            401,
            CLOCK_BEHIND,
            f"nonce is {-ahead_s:.1f} s old, the most is {MIN_AGE_S + timeout:.0f} s"
            f"{', and from before this miner started' if before_start else ''}; "
            "set the caller's clock or this miner's",
        )
    if before_start:
        raise Refused(401, "before_start", "nonce is from before this miner started; ask again")
    return timeout


class ReplayGuard:
    """Accepts every signed message once.

    Bittensor keeps the last nonce of each sender, which refuses concurrent requests that arrive out
    of order, and grows without bound. This remembers every message for as long as its age would
    pass the check, and after that until its room is needed: where this machine's clock is set back,
    nonces of long ago would pass again.

    Args:
        clock: Monotonic clock, in seconds.
        capacity: Messages remembered; when all of them are young, new ones are refused.
    """

    def __init__(self, clock: Callable[[], float], capacity: int = 100_000) -> None:
        self._clock = clock
        self._capacity = capacity
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def remember(self, hotkey: str, uuid: str, nonce: int) -> None:
        """Remembers a verified message.

        Raises:
            Refused: It was received before, or too many are remembered.
        """
        now = self._clock()
        message = blake2b(f"{hotkey}:{uuid}:{nonce}".encode(), digest_size=16).digest()
        if message in self._seen:
            raise Refused(401, "replayed", "this message was received before; sign a new one")
        if len(self._seen) >= self._capacity:
            if next(iter(self._seen.values())) > now:
                raise Refused(
                    429, "rate_limited", "too many requests of all callers; ask again in 15 seconds"
                )
            self._seen.popitem(last=False)
        self._seen[message] = now + MAX_AGE_S + MAX_AHEAD_S


class RateLimit:
    """Limits the requests of one verified caller in any minute.

    Args:
        per_minute: Requests.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        """Of the callers of the last minute, by the time of their last request."""

    def allow(self, hotkey: str) -> bool:
        """Returns whether a request is within the limit; one beyond it is not counted."""
        now = self._clock()
        start = now - 60.0
        while self._times and next(iter(self._times.values()))[-1] <= start:
            self._times.popitem(last=False)
        times = self._times.setdefault(hotkey, deque())
        while times and times[0] <= start:
            times.popleft()
        if len(times) >= self._per_minute:
            return False
        times.append(now)
        self._times.move_to_end(hotkey)
        return True

    def retry_after_s(self, hotkey: str) -> float:
        """Seconds until `allow` lets the next request of a caller through; 0 if it does now."""
        times = self._times.get(hotkey)
        if times is None or len(times) < self._per_minute:
            return 0.0
        return max(0.0, times[0] + 60.0 - self._clock())


class AddressLimit:
    """Limits the refused requests of one address with a token bucket.

    Requests that are served are not counted, so callers that share an address do not use up a
    common limit. Of IPv6, a network of /64 counts as one address.

    Args:
        clock: Monotonic clock, in seconds.
        burst: Refused requests at once.
        per_s: Refused requests a second in the long run.
        capacity: Addresses remembered; beyond it, the one that was not refused for longest is
            forgotten.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        burst: int = REFUSED_AT_ONCE,
        per_s: float = REFUSED_PER_S,
        capacity: int = 10_000,
    ) -> None:
        self._clock = clock
        self._burst = burst
        self._per_s = per_s
        self._capacity = capacity
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What an address had left, and when."""

    def count(self, address: str) -> None:
        """Counts a refused request."""
        key = network_of(address)
        self._left[key] = (max(0.0, self._left_now(key) - 1.0), self._clock())
        self._left.move_to_end(key)
        if len(self._left) > self._capacity:
            self._left.popitem(last=False)

    def is_over(self, address: str) -> bool:
        """Returns whether an address has had its share of refusals for now."""
        return self._left_now(network_of(address)) < 1.0

    def _left_now(self, key: str) -> float:
        left, at = self._left.get(key, (float(self._burst), 0.0))
        return min(float(self._burst), left + (self._clock() - at) * self._per_s)
