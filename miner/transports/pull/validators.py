"""Which validator to ask for a task next. Pure: a clock and numbers.

Times are seconds since the epoch on this miner's clock. A validator's times are converted to that
clock first.
"""

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from miner.chain.metagraph import Neuron

COOLDOWN_S = 300.0
"""Seconds from an assignment to the next pull, if a validator does not say."""

MARGIN_S = 1.0
"""Seconds added to every cooldown, because a pull during a cooldown is a violation."""

BACKOFF_S = 60.0
MAX_BACKOFF_S = 900.0
"""Seconds until a validator that did not answer is asked again, doubled each time up to the cap.
One that had no task is asked again after the first of these."""

MAX_WAIT_S = 24 * 3600.0
"""Longest cooldown that is respected: a garbled time must not exclude a validator forever."""

FORGET_S = 14 * 24 * 3600.0
"""A validator that has not been asked for so long is forgotten."""

Fate = Literal["accepted", "refused", "skipped", "failed", "unknown"]
"""What became of a task: accepted (a score above the threshold), refused (below it, or a bad
signature), skipped (the result was empty), failed (on the validator's side), or unknown."""


class Standing(BaseModel):
    """What is remembered of one validator.

    Attributes:
        ask_after: When it may be asked again; seconds since the epoch.
        asked_at: When it was last asked.
        failures: Calls in a row that it did not answer.
        pulled: Tasks that it assigned.
        accepted: Results that it accepted.
        refused: Results that it did not accept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ask_after: float = 0.0
    asked_at: float = 0.0
    failures: int = Field(default=0, ge=0)
    pulled: int = Field(default=0, ge=0)
    accepted: int = Field(default=0, ge=0)
    refused: int = Field(default=0, ge=0)

    @property
    def worth(self) -> float:
        """Share of results that it accepted, 0..1; 1 while there are none."""
        return (self.accepted + 1) / (self.accepted + self.refused + 1)


@dataclass(frozen=True)
class Selection:
    """Which validators to ask, and which to prefer.

    Attributes:
        own_hotkey: The miner's hotkey, which is never asked.
        min_stake: Least stake of a neuron without a validator permit.
        preferred: Hotkey that is asked every `every`-th turn, if it may be asked then.
        every: See `preferred`.
    """

    own_hotkey: str
    min_stake: float = 1000.0
    preferred: str | None = None
    every: int = 5

    def eligible(self, neuron: Neuron) -> bool:
        """Whether a neuron counts as a validator that serves tasks."""
        serving = 0 < neuron.port < 65536 and not _is_nowhere(neuron.ip)
        trusted = neuron.validator_permit or neuron.stake >= self.min_stake
        return serving and trusted and neuron.hotkey != self.own_hotkey


def _is_nowhere(ip: str) -> bool:
    """Whether an address is what a chain shows of a neuron that serves no axon."""
    try:
        address = ipaddress.ip_address(ip.strip("[]"))
    except ValueError:
        return ip == ""  # The name of a host, in a neurons file.
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_unspecified)


class Validators:
    """Chooses the next validator and learns from what became of it.

    Between `choose` and the call that ends a turn (`unanswered`, `without_task`, `settled`) a
    validator is busy and is not chosen again: this miner has one task of it at most.

    Args:
        selection: Which validators to ask.
        clock: This miner's clock, in seconds since the epoch.
        standings: The standings of an earlier run, by hotkey.
    """

    def __init__(
        self,
        selection: Selection,
        *,
        clock: Callable[[], float],
        standings: Mapping[str, Standing] = MappingProxyType({}),
    ) -> None:
        self._selection = selection
        self._clock = clock
        self._standings = dict(standings)
        self._busy: set[str] = set()
        self._since_preferred = 0

    def standing(self, hotkey: str) -> Standing:
        """Returns what is remembered of a validator."""
        return self._standings.get(hotkey, Standing())

    def choose(self, neurons: Iterable[Neuron]) -> Neuron | None:
        """Returns the validator to ask now, and marks it busy; None if there is none.

        Of those that may be asked, it is the one with the largest product of the seconds since when
        it may be asked and the share of results that it accepted. The wait grows without limit, so
        every validator has its turn, and one that refuses often has fewer.
        """
        now = self._clock()
        ready = [neuron for neuron in self._candidates(neurons) if self._ask_at(neuron) <= now]
        if not ready:
            return None
        chosen = max(ready, key=lambda neuron: (self._urgency(neuron, now), -neuron.uid))
        preferred = [neuron for neuron in ready if neuron.hotkey == self._selection.preferred]
        self._since_preferred += 1
        if preferred and self._since_preferred >= self._selection.every:
            chosen = preferred[0]
        if chosen in preferred:
            self._since_preferred = 0
        self._busy.add(chosen.hotkey)
        self._update(chosen.hotkey, asked_at=now)
        return chosen

    def wait(self, neurons: Iterable[Neuron]) -> float | None:
        """Returns the seconds until a validator may be asked; None if none is eligible and free."""
        times = [self._ask_at(neuron) for neuron in self._candidates(neurons)]
        return max(0.0, min(times) - self._clock()) if times else None

    def waits(self, neurons: Iterable[Neuron]) -> Mapping[int, float]:
        """Returns the seconds until each validator may be asked, by uid; without those busy."""
        now = self._clock()
        return {
            neuron.uid: max(0.0, self._ask_at(neuron) - now) for neuron in self._candidates(neurons)
        }

    def occupy(self, hotkey: str) -> None:
        """Marks a validator busy with a task of an earlier run."""
        self._busy.add(hotkey)

    def unanswered(self, hotkey: str) -> float:
        """Notes a pull without a usable answer, and returns the seconds of back-off."""
        failures = self.standing(hotkey).failures + 1
        backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 30))
        self._update(hotkey, failures=failures, ask_after=self._clock() + backoff)
        self._busy.discard(hotkey)
        return backoff

    def without_task(self, hotkey: str, cooldown_until: float) -> None:
        """Notes a pull without a task, during a cooldown or because there is none now."""
        now = self._clock()
        cooling = cooldown_until > now
        after = self._after(cooldown_until) if cooling else now + BACKOFF_S
        self._update(hotkey, failures=0, ask_after=after)
        self._busy.discard(hotkey)

    def assigned(self, hotkey: str) -> None:
        """Notes a pull that brought a task; the validator stays busy until `settled`."""
        standing = self.standing(hotkey)
        self._update(hotkey, failures=0, pulled=standing.pulled + 1)

    def settled(
        self, hotkey: str, fate: Fate, *, assigned_at: float, cooldown_until: float | None = None
    ) -> None:
        """Notes the end of a task.

        Args:
            hotkey: The validator's hotkey.
            fate: What became of the task.
            assigned_at: When it was assigned.
            cooldown_until: When the validator may be asked again. If it did not say (None), the
                published rule applies.
        """
        standing = self.standing(hotkey)
        until = assigned_at + COOLDOWN_S if cooldown_until is None else cooldown_until
        self._update(
            hotkey,
            accepted=standing.accepted + (fate == "accepted"),
            refused=standing.refused + (fate == "refused"),
            ask_after=self._after(until),
        )
        self._busy.discard(hotkey)

    def export(self) -> dict[str, Standing]:
        """Returns the standings to keep over a restart, by hotkey."""
        oldest = self._clock() - FORGET_S
        return {
            hotkey: standing
            for hotkey, standing in self._standings.items()
            if standing.asked_at >= oldest
        }

    def _candidates(self, neurons: Iterable[Neuron]) -> list[Neuron]:
        return [
            neuron
            for neuron in neurons
            if neuron.hotkey not in self._busy and self._selection.eligible(neuron)
        ]

    def _ask_at(self, neuron: Neuron) -> float:
        return self.standing(neuron.hotkey).ask_after

    def _urgency(self, neuron: Neuron, now: float) -> float:
        standing = self.standing(neuron.hotkey)
        waited = now - max(standing.ask_after, standing.asked_at)
        return (1.0 + max(0.0, waited)) * standing.worth

    def _after(self, cooldown_until: float) -> float:
        now = self._clock()
        return min(max(cooldown_until, now) + MARGIN_S, now + MAX_WAIT_S)

    def _update(self, hotkey: str, **values: float) -> None:
        self._standings[hotkey] = self.standing(hotkey).model_copy(update=values)
