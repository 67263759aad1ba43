"""Answers counted: outcomes, punctuality and stage times, overall or of one caller."""

import math
import statistics
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from miner.score.fields import Fields

OTHERS = "others"

SAMPLE = 10_000
"""Runs of a stage that its percentiles are taken from: the last ones."""

CALLER_SAMPLE = 1000
"""The same for one caller."""

MOST_NAMES = 1000
"""Callers, codes or stages that are told apart; a stranger may invent as many as it likes."""


class Answered(NamedTuple):
    """What is counted of one `answered` event.

    Attributes:
        outcome: See docs/score-log.md, as the next ones.
        code: Its reason code.
        caller: Hotkey of the caller.
        rung: Quality level.
        total: Seconds to the answer, where the line says so.
        timings: Seconds by stage.
        on_time: Whether it was completed within its budget.
        left: Whether its caller left while there was time.
    """

    outcome: str
    code: str
    caller: str
    rung: str
    total: float | None
    timings: Mapping[str, float]
    on_time: bool
    left: bool

    @property
    def owed(self) -> bool:
        """Whether it was no mistake of its caller, who stayed while there was time."""
        return self.outcome != "rejected" and not self.left


def left_in_time(code: str, total_s: float | None, budget_s: float | None) -> bool:
    """Returns whether a caller left while there was time, so that it was owed no answer.

    Args:
        code: The reason code of its answer.
        total_s: Seconds until it left, where the line says so.
        budget_s: Its budget, where it came so far.
    """
    return code == "caller_left" and (budget_s is None or (total_s or 0.0) <= budget_s)


def answered_of(fields: Fields) -> Answered:
    """Reads an `answered` event."""
    outcome, code = fields.name("outcome"), fields.name("reason_code")
    total, budget = fields.number("total_s"), fields.number("budget_s")
    left = outcome != "rejected" and left_in_time(code, total, budget)
    answered = Answered(
        outcome,
        code,
        fields.name("caller"),
        fields.name("rung"),
        total,
        fields.seconds("timings"),
        fields.flag("on_time") and outcome == "completed",
        left,
    )
    fields.check_texts("ts", "task_id", "reason")
    fields.odd |= "outcome" not in fields.event
    return answered


@dataclass
class Tally:
    """The answers of one caller, or of all of them.

    Attributes:
        sample: Runs of a stage that are kept for its percentiles.
        answers: How many requests were answered, whatever the outcome.
        outcomes: Answers by (outcome, reason code).
        on_time: How many completed answers kept their budget.
        rejected: How many requests were their callers' mistakes.
        left: Callers that left while there was time: `caller_left` within the budget.
        rungs: Completed answers by quality level.
        stages: Seconds of the last runs of each stage; "total" holds completed answers' totals.
        fidelity: The last task fidelity scores; 0.0 means below the validator's threshold.
    """

    sample: int = SAMPLE
    answers: int = 0
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    on_time: int = 0
    rejected: int = 0
    left: int = 0
    rungs: Counter[str] = field(default_factory=Counter)
    stages: dict[str, deque[float]] = field(default_factory=dict)
    fidelity: list[float] = field(default_factory=list)

    def count(self, answer: Answered) -> None:
        """Counts one answer."""
        both = (answer.outcome, answer.code)
        self.answers += 1
        self.outcomes[bounded(self.outcomes, both, (OTHERS, OTHERS))] += 1
        self.rejected += answer.outcome == "rejected"
        self.left += answer.left
        if answer.outcome == "completed":
            self.on_time += answer.on_time
            self.rungs[bounded(self.rungs, answer.rung, OTHERS)] += 1
            for stage, seconds in answer.timings.items():
                self._took(stage, seconds)
            if answer.total is not None:
                self._took("total", answer.total)

    def judged(self, score: float) -> None:
        """Notes the score of a result."""
        self.fidelity.append(score)
        if len(self.fidelity) > 2 * SAMPLE:
            del self.fidelity[:SAMPLE]

    @property
    def owed(self) -> int:
        """Answers that were owed: no mistake of their callers, who stayed while there was time."""
        return self.answers - self.rejected - self.left

    @property
    def on_time_share(self) -> float:
        """Share of the answers owed that were completed within the budget, 0..1; 0 if none is owed.

        An answer is owed unless the request was rejected, or its caller left while there was time.
        """
        return self.on_time / self.owed if self.owed > 0 else 0.0

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Stage name to (p50, p95) in seconds."""
        shares = (0.5, 0.95)
        found = {stage: quantiles(seconds, shares) for stage, seconds in self.stages.items()}
        return {stage: (p50, p95) for stage, (p50, p95) in found.items()}

    @property
    def mean_fidelity(self) -> float | None:
        """The mean of the last scores; None without one."""
        return statistics.fmean(self.fidelity) if self.fidelity else None

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON-ready values."""
        mean = self.mean_fidelity
        return {
            "answers": self.answers,
            "rejected": self.rejected,
            "left": self.left,
            "outcomes": {f"{o}/{code}": n for (o, code), n in self.outcomes.most_common()},
            "on_time_share": round(self.on_time_share, 4),
            "rungs": dict(self.rungs.most_common()),
            "seconds": {
                stage: {"p50": round(p50, 4), "p95": round(p95, 4)}
                for stage, (p50, p95) in self.percentiles().items()
            },
            "mean_fidelity": None if mean is None else round(mean, 4),
        }

    def _took(self, stage: str, seconds: float) -> None:
        runs = self.stages.get(stage)
        if runs is None:
            stage = bounded(self.stages, stage, OTHERS)
            runs = self.stages.setdefault(stage, deque(maxlen=self.sample))
        runs.append(seconds)


def bounded(known: Mapping[Any, Any], name: Hashable, other: Any) -> Any:
    """Returns the name; the one for all others if it is new and there are too many."""
    return name if name in known or len(known) < MOST_NAMES else other


def quantiles(values: Iterable[float], shares: Iterable[float]) -> list[float]:
    """Returns quantiles, interpolated between the nearest values.

    Args:
        values: At least one.
        shares: 0..1 each.
    """
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = ordered[min(below + 1, len(ordered) - 1)]
        found.append(ordered[below] + (above - ordered[below]) * (place - below))
    return found
