"""What a score log says: outcomes, punctuality and stage times, overall and per caller.

Reads only the lines that `docs/score-log.md` describes and imports nothing heavy, so that a
monitor starts at once.
"""

import json
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]

_RECENT = 10


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Yields the JSON objects of a score log; a line cut short by a crash is passed over."""
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            yield event


@dataclass
class Tally:
    """The answers of one caller, or of all of them.

    Attributes:
        outcomes: Answers by (outcome, reason code).
        on_time: How many completed answers kept their budget.
        rungs: Completed answers by quality level.
        stages: Seconds of every run of each stage; "total" holds completed answers' totals.
        fidelity: Task fidelity scores from feedback; 0.0 means below the validator's threshold.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    on_time: int = 0
    rungs: Counter[str] = field(default_factory=Counter)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    fidelity: list[float] = field(default_factory=list)

    def add(self, event: Event) -> None:
        """Counts one `answered` or `feedback` event."""
        if event["event"] == "feedback":
            if not event.get("validation_failed") and "task_fidelity_score" in event:
                self.fidelity.append(float(event["task_fidelity_score"]))
            return
        outcome = str(event.get("outcome", "unknown"))
        self.outcomes[outcome, str(event.get("reason_code", "unknown"))] += 1
        if outcome == "completed":
            self.on_time += bool(event.get("on_time"))
            self.rungs[str(event.get("rung", "unknown"))] += 1
            for stage, seconds in event.get("timings", {}).items():
                self.stages[stage].append(float(seconds))
            self.stages["total"].append(float(event.get("total_s", 0.0)))

    @property
    def answers(self) -> int:
        """How many requests were answered, whatever the outcome."""
        return self.outcomes.total()

    @property
    def on_time_share(self) -> float:
        """Share of all answers that were completed within the budget, 0..1."""
        return self.on_time / self.answers if self.answers else 0.0

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Stage name to (p50, p95) in seconds."""
        return {stage: (_quantile(v, 50), _quantile(v, 95)) for stage, v in self.stages.items()}

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON-ready values."""
        return {
            "answers": self.answers,
            "outcomes": {f"{o}/{code}": n for (o, code), n in self.outcomes.most_common()},
            "on_time_share": round(self.on_time_share, 4),
            "rungs": dict(self.rungs.most_common()),
            "seconds": {
                stage: {"p50": round(p50, 4), "p95": round(p95, 4)}
                for stage, (p50, p95) in self.percentiles().items()
            },
            "mean_fidelity": round(statistics.fmean(self.fidelity), 4) if self.fidelity else None,
        }


class ScoreReport:
    """Tallies that grow with a log; feed it events in the order they were written."""

    def __init__(self) -> None:
        self.overall = Tally()
        self.callers: dict[str, Tally] = defaultdict(Tally)
        self.refused: Counter[str] = Counter()
        self.recent: deque[Event] = deque(maxlen=_RECENT)
        self.state = "unknown"

    def add(self, event: Event) -> None:
        """Takes one event in; unknown kinds are ignored."""
        match event["event"]:
            case "answered" | "feedback":
                self.overall.add(event)
                self.callers[str(event.get("caller", "unknown"))].add(event)
                if event["event"] == "answered":
                    self.recent.append(event)
            case "refused":
                self.refused[str(event.get("reason_code", "unknown"))] += int(event.get("count", 1))
            case "state_changed":
                self.state = str(event.get("state", "unknown"))
            case "miner_started":
                self.state = "starting"
            case "miner_stopped":
                self.state = "stopped"

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "state": self.state,
            "overall": self.overall.as_dict(),
            "callers": {caller: tally.as_dict() for caller, tally in self.callers.items()},
            "refused": dict(self.refused),
            "recent": list(self.recent),
        }


def _quantile(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
