"""Which validator to ask for a task next. Pure: a wall clock and numbers.

Times are seconds since the epoch by the miner's own clock, because cooldowns have to survive a
restart; a validator's times are brought onto that clock before they come here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from miner.chain.metagraph import Neuron

COOLDOWN_S = 300.0
"""From an assignment to the next pull, when a validator did not say."""

MARGIN_S = 1.0
"""Added to every cooldown: pulling a moment early is a violation, a moment late is a moment."""

BACKOFF_S = 60.0
MAX_BACKOFF_S = 900.0
"""A validator that does not answer is left alone for so long, doubled each time up to the cap; one
that has no task is left alone for the first of these."""

MAX_WAIT_S = 24 * 3600.0
"""The longest that a validator's word keeps us away: a garbled time must not do so for ever."""

FORGET_S = 14 * 24 * 3600.0
"""A validator that was not asked for so long is forgotten."""

Fate = Literal["accepted", "refused", "skipped", "failed", "unknown"]
"""What became of a task: a score above the threshold, one below it or a bad signature, an empty
result of ours, a failure of the validator's own, or no answer that says."""


class Standing(BaseModel):
    """What is remembered of one validator.

    Attributes:
        ask_after: Not to be asked before; seconds since the epoch.
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
        """Share of its judgements that were in our favour, 0..1; 1 while there are none."""
        return (self.accepted + 1) / (self.accepted + self.refused + 1)


@dataclass(frozen=True)
class Selection:
    """Whom to ask at all, and whom to prefer.

    Attributes:
        own_hotkey: Ours, which is never asked.
        min_stake: A neuron without a validator permit needs at least this stake.
        preferred: Hotkey that is asked every `every`-th turn, if it may be asked then.
        every: See `preferred`.
    """

    own_hotkey: str
    min_stake: float = 1000.0
    preferred: str | None = None
    every: int = 5

    def eligible(self, neuron: Neuron) -> bool:
        """Tells whether a neuron counts as a validator that serves tasks."""
        serving = neuron.port > 0 and neuron.ip not in ("", "0.0.0.0", "::")
        trusted = neuron.validator_permit or neuron.stake >= self.min_stake
        return serving and trusted and neuron.hotkey != self.own_hotkey


class Validators:
    """Chooses the next validator and learns from what became of it.

    Between `choose` and the call that ends a turn (`unanswered`, `without_task`, `settled`) a
    validator is busy and is not chosen again: it has one task with us at most.

    Args:
        selection: Whom to ask.
        clock: Wall clock, in seconds since the epoch.
        standings: What an earlier run remembered, by hotkey.
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
        """What is remembered of a validator."""
        return self._standings.get(hotkey, Standing())

    def choose(self, neurons: Iterable[Neuron]) -> Neuron | None:
        """Returns the validator to ask now, and marks it busy; None if there is none.

        Of those that may be asked, it is the one with the largest (seconds since it could have
        been asked) x (share of its judgements in our favour). Waiting adds up without limit, so
        everybody has a turn; who refuses often has fewer.
        """
        now = self._clock()
        ready = [neuron for neuron in self._candidates(neurons) if self._ask_at(neuron) <= now]
        if not ready:
            return None
        chosen = max(ready, key=lambda neuron: (self._urgency(neuron, now), -neuron.uid))
        favourites = [neuron for neuron in ready if neuron.hotkey == self._selection.preferred]
        self._since_preferred += 1
        if favourites and self._since_preferred >= self._selection.every:
            chosen = favourites[0]
        if chosen in favourites:
            self._since_preferred = 0
        self._busy.add(chosen.hotkey)
        self._update(chosen.hotkey, asked_at=now)
        return chosen

    def wait(self, neurons: Iterable[Neuron]) -> float | None:
        """Seconds until somebody may be asked, 0 if now; None if nobody is eligible and free."""
        times = [self._ask_at(neuron) for neuron in self._candidates(neurons)]
        return max(0.0, min(times) - self._clock()) if times else None

    def occupy(self, hotkey: str) -> None:
        """Marks a validator busy with a task of an earlier run."""
        self._busy.add(hotkey)

    def unanswered(self, hotkey: str) -> float:
        """A pull got no answer, or none that can be used; returns the seconds of back-off."""
        failures = self.standing(hotkey).failures + 1
        backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(failures - 1, 30))
        self._update(hotkey, failures=failures, ask_after=self._clock() + backoff)
        self._busy.discard(hotkey)
        return backoff

    def without_task(self, hotkey: str, cooldown_until: float) -> None:
        """A pull was answered without a task: for a cooldown, or because there is none just now."""
        now = self._clock()
        cooling = cooldown_until > now
        after = self._after(cooldown_until) if cooling else now + BACKOFF_S
        self._update(hotkey, failures=0, ask_after=after)
        self._busy.discard(hotkey)

    def assigned(self, hotkey: str) -> None:
        """A pull brought a task: the validator is alive, and busy until `settled`."""
        standing = self.standing(hotkey)
        self._update(hotkey, failures=0, pulled=standing.pulled + 1)

    def settled(
        self, hotkey: str, fate: Fate, *, assigned_at: float, cooldown_until: float | None = None
    ) -> None:
        """A task is over.

        Args:
            hotkey: The validator's.
            fate: What became of it.
            assigned_at: When it was assigned.
            cooldown_until: When the validator may be asked again; None if it did not say, which
                is then reckoned by the published rule.
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
        """What is worth remembering over a restart, by hotkey."""
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
