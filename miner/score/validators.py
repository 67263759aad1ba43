"""What each validator has made of this miner's results, from `pulled` and `feedback` events."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from miner.score.fields import Fields

EMA_SHARE = 0.1
"""Weight of the newest score in the moving average."""

LAST_FATES = 50
"""Fates that are kept one by one."""


@dataclass
class ValidatorTally:
    """One validator.

    Attributes:
        uid: Its uid on the subnet, as last written.
        pulls: Times that it was asked, by what came of it: `task`, `no_task`, `no_answer`.
        fates: Settled tasks by fate; docs/score-log.md lists them.
        scored: Accepted results, whose scores the next two average. Of a refused one the protocol
            tells no score.
        mean: Mean fidelity of the accepted results, 0..1.
        ema: Their moving average; the newest counts `EMA_SHARE`.
        threshold: The least score that the validator accepts.
        reported: What it last answered: `average_fidelity_score`, `generations_within_the_window`
            (results in the last four hours), `current_duel_rating`, `current_miner_reward`.
        next_pull_at: When it may be asked again, in seconds since the epoch.
        no_answer: Why it did not answer the last pull; empty if it did.
        last: When and how the last tasks were settled, the newest last.
    """

    uid: int | None = None
    pulls: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    scored: int = 0
    mean: float = 0.0
    ema: float = 0.0
    threshold: float | None = None
    reported: dict[str, float] = field(default_factory=dict)
    next_pull_at: float | None = None
    no_answer: str = ""
    last: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=LAST_FATES))

    def pulled(self, fields: Fields, at: float | None) -> None:
        """Notes a `pulled` event, written at this time."""
        self._common(fields, at)
        result = fields.name("result")
        self.pulls[result if result in _RESULTS else "unknown"] += 1
        self.no_answer = fields.text("reason", "") if result == "no_answer" else ""

    def settled(self, fields: Fields, at: float | None) -> str:
        """Notes a `feedback` event, written at this time; returns the fate."""
        self._common(fields, at)
        fate = fields.name("fate")
        fate = fate if fate in _FATES else "unknown"
        self.fates[fate] += 1
        self.last.append((at or 0.0, fate))
        score = fields.number("task_fidelity_score")
        if fate == "accepted" and score is not None:
            self.scored += 1
            self.mean += (score - self.mean) / self.scored
            self.ema += (score - self.ema) * (1.0 if self.scored == 1 else EMA_SHARE)
        for name in _REPORTED:
            if (value := fields.number(name)) is not None:
                self.reported[name] = value
        return fate

    @property
    def tasks(self) -> int:
        """Settled tasks."""
        return self.fates.total()

    def as_dict(self) -> dict[str, Any]:
        """The row of this validator as JSON-ready values; `None` where nothing is known."""
        return {
            "uid": self.uid,
            "pulls": dict(self.pulls),
            "tasks": self.tasks,
            "accepted": self.fates["accepted"],
            "below_threshold": self.fates["refused"],
            "empty": self.fates["skipped"],
            "failed": self.fates["failed"],
            "unknown": self.fates["unknown"],
            "threshold": self.threshold,
            "fidelity_mean": round(self.mean, 4) if self.scored else None,
            "fidelity_ema": round(self.ema, 4) if self.scored else None,
            "fidelity_reported": self.reported.get("average_fidelity_score"),
            "results_in_window": self.reported.get("generations_within_the_window"),
            "duel_rating": self.reported.get("current_duel_rating"),
            "reward": self.reported.get("current_miner_reward"),
            "next_pull_unix": self.next_pull_at,
            "no_answer": self.no_answer or None,
        }

    def _common(self, fields: Fields, at: float | None) -> None:
        uid, wait = fields.number("uid"), fields.number("ask_again_s")
        self.uid = self.uid if uid is None else int(uid)
        if at is not None and wait is not None:
            self.next_pull_at = at + wait
        if (threshold := fields.number("threshold")) is not None:
            self.threshold = threshold


_RESULTS = frozenset({"task", "no_task", "no_answer"})
_FATES = frozenset({"accepted", "refused", "skipped", "failed"})
_REPORTED = (
    "average_fidelity_score",
    "generations_within_the_window",
    "current_duel_rating",
    "current_miner_reward",
)
