"""What is wrong between this worker and the gateway: one message with the fix, until it is over."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Literal

from loguru import logger

from miner.transports.gateway.addresses import host_of
from miner.transports.gateway.calls import CLOCK_IS_OFF_S, GatewayFault
from protocol.gateway import NOT_ASSIGNED, NOT_WHITELISTED

Trouble = Literal["whitelist", "signature", "clock", "limits", "context", "request", "connection"]

CLOSED_S = 60.0
"""Seconds that a node rests at least where only its operator, or the miner's, can help."""

MINUTE_S = 60.0
"""A gateway counts in minutes."""

BLIPS = 2
"""Calls in a row without an answer that are not worth a message."""

_LASTING: frozenset[Trouble] = frozenset({"whitelist", "signature", "request"})


def trouble_of(fault: GatewayFault) -> Trouble:
    """Names what a fault shows."""
    match fault.status:
        case 401 | 403 if NOT_WHITELISTED in fault.answer:
            return "whitelist"
        case 401 if NOT_ASSIGNED in fault.answer:
            return "context"
        case 401:
            return "signature"
        case 410:
            return "context"
        case 429:
            return "limits"
        case status if 300 <= status < 500:
            return "request"
    return "connection"


class Troubles:
    """Says each trouble once, when the first place has it, and that it is over with the last.

    A place is a route of a node, as `https://HOST/get_tasks`.

    Args:
        hotkey: The worker's hotkey, for the messages.
        say: Logs a warning.
    """

    def __init__(self, hotkey: str, say: Callable[[str], None] | None = None) -> None:
        self._hotkey = hotkey
        self._say = say or (lambda text: logger.warning("{}", text))
        self._places: defaultdict[Trouble, set[str]] = defaultdict(set)
        self._unanswered: Counter[str] = Counter()

    def note(self, place: str, fault: GatewayFault) -> float:
        """Notes a fault; returns the seconds that the node should rest at least."""
        trouble = trouble_of(fault)
        self._unanswered[place] = self._unanswered[place] + 1 if trouble == "connection" else 0
        if trouble != "connection" or self._unanswered[place] > BLIPS:
            self._begin(trouble, place, self._words(trouble, fault))
        if trouble == "limits":
            return MINUTE_S
        return CLOSED_S if trouble in _LASTING else 0.0

    def answered(self, place: str) -> None:
        """Notes that a call was taken: nothing is wrong there but perhaps the clock."""
        self._unanswered[place] = 0
        for trouble in _OVER:
            if trouble != "clock":
                self._end(trouble, place)

    def clock(self, address: str, off_s: float) -> None:
        """Notes by how much the gateway's clock is ahead of this machine's.

        Args:
            address: The node.
            off_s: Seconds, negative if it is behind; surely so much.
        """
        if abs(off_s) < CLOCK_IS_OFF_S:
            self._end("clock", address)
            return
        way = "behind" if off_s > 0 else "ahead of"
        self._begin(
            "clock",
            address,
            f"this machine's clock is {abs(off_s):.0f} s {way} that of {host_of(address)}; "
            "requests are signed by the gateway's clock. Fix: timedatectl set-ntp true",
        )

    def _begin(self, trouble: Trouble, place: str, words: str) -> None:
        first = not self._places[trouble]
        self._places[trouble].add(place)
        if first:
            self._say(f"gateway: {words}")

    def _end(self, trouble: Trouble, place: str) -> None:
        if place in self._places[trouble]:
            self._places[trouble].discard(place)
            if not self._places[trouble]:
                self._say(f"gateway: resolved: {_OVER[trouble]} by {host_of(place)}")

    def _words(self, trouble: Trouble, fault: GatewayFault) -> str:
        match trouble:
            case "whitelist":
                return (
                    f"{fault}. The gateway serves listed workers only. Fix: ask its operator to "
                    f"add the hotkey {self._hotkey} to http.worker_whitelist, or leave the "
                    "transport out. It is asked again from time to time"
                )
            case "signature":
                return (
                    f"{fault}. The gateway does not take the signature: the clocks differ by more "
                    "than 30 s and its Date header does not correct that, or the hotkey is not an "
                    "sr25519 key. Fix: timedatectl set-ntp true, then check --wallet.hotkey with "
                    "python -m scripts.doctor"
                )
            case "limits":
                return (
                    f"{fault}. More calls came from this address than the gateway takes in a "
                    "minute. Fix: share 120 a minute among all miners behind the address with "
                    "--gateway.results_per_minute"
                )
            case "context":
                return (
                    f"{fault}. The gateway does not know the task any more: it was timed out or "
                    "finished, the node was restarted, or the address leads to another node. Fix, "
                    "if it is every task: name each node with --gateway.nodes, not a name for all "
                    "regions"
                )
            case "request":
                return (
                    f"{fault}. The gateway does not take the request, so it may be of another "
                    "version, or no gateway. Fix: check --gateway.nodes, and docs/gateway.md for "
                    "the version"
                )
        return f"{fault}. It is tried again with growing pauses. Fix: check --gateway.nodes"


_OVER: dict[Trouble, str] = {
    "whitelist": "the hotkey is served",
    "signature": "the signature is taken",
    "clock": "the time is confirmed",
    "limits": "calls are taken again",
    "context": "a result was taken",
    "request": "requests are taken",
    "connection": "calls are answered again",
}
