"""Who may call the axon, how often, with which headers. Pure: clocks and values, no Bittensor."""

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from math import isfinite

from miner.chain.metagraph import Chain
from miner.transports.refusals import Refusal

NANOSECONDS = 1_000_000_000
MIN_VERSION = 7_002_000
"""Bittensor 7.2.0. Nonces of older versions are not times, so their messages could be replayed."""

MAX_TIMEOUT_S = 6.0
"""Seconds that `timeout` may add to the 4 s of age that Bittensor allows; it is not signed."""

MAX_AGE_S = 4.0 + MAX_TIMEOUT_S
MAX_AHEAD_S = 4.0
"""Seconds that a caller's clock may be ahead of ours."""


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
        started: Since when nonces are remembered; an older one may have been used before.

    Raises:
        ValueError: A header is missing or out of range; names it.
    """
    if version is None or version < MIN_VERSION:
        raise ValueError("version is missing or before 7.2.0; update bittensor")
    if nonce is None:
        raise ValueError("nonce is missing")
    if nonce > now + MAX_AHEAD_S * NANOSECONDS:
        raise ValueError("nonce lies in the future; set the clock")
    if nonce < started:
        raise ValueError("nonce is from before this miner started; ask again")
    if timeout is None or not isfinite(timeout) or timeout < 0.0:
        raise ValueError("timeout is missing or not a positive number")
    return min(timeout, MAX_TIMEOUT_S)


class ReplayGuard:
    """Accepts every signed message once.

    Bittensor keeps the last nonce of each sender, which refuses concurrent requests that arrive out
    of order, and grows without bound. This remembers every message for as long as its age would
    pass the check, which is exact and bounded.

    Args:
        clock: Monotonic clock, in seconds.
        capacity: Messages remembered; when full, new ones are refused until old ones expire.
    """

    def __init__(self, clock: Callable[[], float], capacity: int = 100_000) -> None:
        self._clock = clock
        self._capacity = capacity
        self._seen: OrderedDict[bytes, float] = OrderedDict()

    def remember(self, hotkey: str, uuid: str, nonce: int) -> None:
        """Remembers a verified message.

        Raises:
            ValueError: It was received before, or too many are remembered.
        """
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        message = blake2b(f"{hotkey}:{uuid}:{nonce}".encode(), digest_size=16).digest()
        if message in self._seen:
            raise ValueError("this message was received before")
        if len(self._seen) >= self._capacity:
            raise ValueError("too many requests; ask again in some seconds")
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
        self._times: dict[str, deque[float]] = {}

    def allow(self, hotkey: str) -> bool:
        """Returns whether a request is within the limit; one beyond it is not counted."""
        start = self._clock() - 60.0
        for key in [key for key, times in self._times.items() if times[-1] <= start]:
            del self._times[key]
        times = self._times.setdefault(hotkey, deque())
        while times and times[0] <= start:
            times.popleft()
        if len(times) >= self._per_minute:
            return False
        times.append(self._clock())
        return True
