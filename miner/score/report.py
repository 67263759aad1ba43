"""What a score log says: outcomes, punctuality and stage times, overall and per caller.

Reads only the lines that `docs/score-log.md` describes and imports nothing heavy, so that a
monitor starts at once. Whatever a line holds, it is counted: a damaged line is no JSON object with
an event, an odd line has a field of another type than the document says.
"""

import json
import math
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol.text import printable

Event = Mapping[str, Any]

UNKNOWN, OTHERS = "unknown", "others"

RECENT = 50
SAMPLE = 10_000
"""Runs of a stage that its percentiles are taken from: the last ones."""

MOST_NAMES = 1000
"""Callers, codes or stages that are told apart; a stranger may invent as many as it likes."""

_LARGEST = 1e10
_DEEPEST = 4


def parse(line: str) -> Event | None:
    """Returns the event of a line; None if the line is damaged."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if "\ufffd" in line or not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    return event


def moment_of(event: Event | None) -> float | None:
    """Returns when an event was written, in seconds since the epoch, where it says so."""
    return None if event is None else _Fields(event).number("unix")


class _Fields:
    """The fields of one event, each as its type; notes whether one has another type."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self.odd = False

    def text(self, name: str, default: str = UNKNOWN) -> str:
        """A text on one line, harmless to a terminal."""
        value = self._event.get(name)
        if isinstance(value, str):
            return printable(value)
        self.odd |= name in self._event
        return default

    def number(self, name: str) -> float | None:
        """A finite number of a sane size, at least 0."""
        number = _number(self._event.get(name))
        self.odd |= number is None and name in self._event
        return number

    def flag(self, name: str) -> bool:
        """True or false; a field that is missing is false."""
        value = self._event.get(name, False)
        self.odd |= not isinstance(value, bool)
        return value is True

    def seconds(self, name: str) -> dict[str, float]:
        """Numbers by name."""
        value = self._event.get(name, {})
        if not isinstance(value, dict):
            self.odd = True
            return {}
        numbers = {printable(key, 40): _number(item) for key, item in value.items()}
        self.odd |= None in numbers.values()
        return {key: number for key, number in numbers.items() if number is not None}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _LARGEST else None  # NaN is not.


def _sample() -> dict[str, deque[float]]:
    return defaultdict(lambda: deque(maxlen=SAMPLE))


@dataclass
class Tally:
    """The answers of one caller, or of all of them.

    Attributes:
        outcomes: Answers by (outcome, reason code).
        on_time: How many completed answers kept their budget.
        left: Callers that left while there was time: `caller_left` within the budget.
        rungs: Completed answers by quality level.
        stages: Seconds of the last runs of each stage; "total" holds completed answers' totals.
        fidelity: Task fidelity scores from feedback; 0.0 means below the validator's threshold.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    on_time: int = 0
    left: int = 0
    rungs: Counter[str] = field(default_factory=Counter)
    stages: dict[str, deque[float]] = field(default_factory=_sample)
    fidelity: list[float] = field(default_factory=list)

    def add(self, event: Event) -> bool:
        """Counts one `answered` or `feedback` event; returns whether all its fields are sound."""
        fields = _Fields(event)
        if event["event"] == "feedback":
            score = fields.number("task_fidelity_score")
            if not fields.flag("validation_failed") and score is not None:
                self.fidelity.append(score)
            return not fields.odd
        outcome, code = fields.text("outcome"), fields.text("reason_code")
        both = (outcome, code)
        self.outcomes[_bounded(self.outcomes, both, (OTHERS, OTHERS))] += 1
        total, budget = fields.number("total_s"), fields.number("budget_s")
        left = code == "caller_left" and outcome != "rejected"
        self.left += left and (budget is None or (total or 0.0) <= budget)
        on_time, timings = fields.flag("on_time"), fields.seconds("timings")
        rung = fields.text("rung")
        if outcome == "completed":
            self.on_time += on_time
            self.rungs[_bounded(self.rungs, rung, OTHERS)] += 1
            for stage, seconds in timings.items():
                self.stages[_bounded(self.stages, stage, OTHERS)].append(seconds)
            if total is not None:
                self.stages["total"].append(total)
        return not fields.odd and "outcome" in event

    @property
    def answers(self) -> int:
        """How many requests were answered, whatever the outcome."""
        return self.outcomes.total()

    @property
    def rejected(self) -> int:
        """How many requests were their callers' mistakes."""
        return sum(n for (outcome, _), n in self.outcomes.items() if outcome == "rejected")

    @property
    def on_time_share(self) -> float:
        """Share of the answers owed that were completed within the budget, 0..1; 0 if none is owed.

        An answer is owed unless the request was rejected, or its caller left while there was time.
        """
        owed = self.answers - self.rejected - self.left
        return self.on_time / owed if owed > 0 else 0.0

    def percentiles(self) -> dict[str, tuple[float, float]]:
        """Stage name to (p50, p95) in seconds."""
        return {stage: (_quantile(v, 50), _quantile(v, 95)) for stage, v in self.stages.items()}

    def as_dict(self) -> dict[str, Any]:
        """The tally as JSON-ready values."""
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
            "mean_fidelity": round(statistics.fmean(self.fidelity), 4) if self.fidelity else None,
        }


class ScoreReport:
    """Tallies that grow with a log; feed it lines in the order in which they were written.

    Attributes:
        overall: Of all callers.
        callers: By hotkey.
        refused: Callers turned away, by reason code.
        refused_because: The last reason of each of those codes.
        recent: The last answers, the newest last.
        notes: What was wrong with engines and the log, the newest last.
        state: As the log says; "unknown" before its first word of it.
        pid: The process that began last, where the log says so.
        last_at: When the last line was written, in seconds since the epoch.
        damaged: Lines that hold no event.
        odd: Events with a field of another type than documented.
        lost: Lines that the miner could not write.
    """

    def __init__(self) -> None:
        self.overall = Tally()
        self.callers: dict[str, Tally] = defaultdict(Tally)
        self.refused: Counter[str] = Counter()
        self.refused_because: dict[str, str] = {}
        self.recent: deque[Event] = deque(maxlen=RECENT)
        self.notes: deque[str] = deque(maxlen=RECENT)
        self.state = UNKNOWN
        self.pid: int | None = None
        self.last_at: float | None = None
        self.damaged = 0
        self.odd = 0
        self.lost = 0

    def read(self, line: str) -> None:
        """Takes one line in, whatever it holds; an empty one says nothing."""
        text = line.strip().removeprefix("\ufeff")
        if not text:
            return
        # After a crash of the machine, a run of NULs may stand before a sound line.
        sound = text.strip("\0")
        self.damaged += sound != text
        event = parse(sound) if sound else None
        if event is not None:
            self.add(event)
        elif sound == text:
            self.damaged += 1

    def add(self, event: Event) -> None:
        """Takes one event in; unknown kinds only show that the miner lived then."""
        fields = _Fields(event)
        moment = fields.number("unix")
        self.last_at = self.last_at if moment is None else moment
        sound = True
        match event["event"]:
            case "answered" | "feedback" as kind:
                sound = self.overall.add(event)
                caller = _bounded(self.callers, fields.text("caller"), OTHERS)
                self.callers[caller].add(event)
                if kind == "answered":
                    for name in ("ts", "task_id", "reason"):
                        fields.text(name)
                    self.recent.append(_plain(event, 0))
            case "refused":
                code = _bounded(self.refused, fields.text("reason_code"), OTHERS)
                count = fields.number("count")
                self.refused[code] += 1 if count is None else int(count)
                self.refused_because[code] = fields.text("reason", "")
            case "state_changed":
                self.state = fields.text("state")
            case "miner_started":
                self.state = "starting"
                pid = fields.number("pid")
                self.pid = None if pid is None else int(pid)
            case "miner_stopped":
                self.state = "stopped"
            case "log_lost":
                lost = int(fields.number("count") or 0)
                self.lost += lost
                self.notes.append(f"{lost} lines were not written: {fields.text('reason')}")
            case "engine_suspect" | "engine_lost" | "engine_back" as kind:
                words = f"{kind}: {fields.text('engine')} {fields.text('reason', '')}"
                self.notes.append(words.strip())
        self.odd += fields.odd or not sound

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "state": self.state,
            "pid": self.pid,
            "last_line_unix": self.last_at,
            "damaged_lines": self.damaged,
            "odd_lines": self.odd,
            "lost_lines": self.lost,
            "overall": self.overall.as_dict(),
            "callers": {caller: tally.as_dict() for caller, tally in self.callers.items()},
            "refused": dict(self.refused),
            "refused_because": self.refused_because,
            "notes": list(self.notes),
            "recent": list(self.recent),
        }


def _bounded(known: Mapping[Any, Any], name: Hashable, other: Any) -> Any:
    """Returns the name; the one for all others if it is new and there are too many."""
    return name if name in known or len(known) < MOST_NAMES else other


def _plain(value: Any, depth: int) -> Any:
    """Returns a value of JSON as a reader may trust it: finite, harmless, not deep."""
    match value:
        case str():
            return printable(value)
        case float():
            return value if math.isfinite(value) else None
        case dict() | list() if depth == _DEEPEST:
            return "..."
        case dict():
            return {printable(key, 40): _plain(v, depth + 1) for key, v in list(value.items())[:50]}
        case list():
            return [_plain(item, depth + 1) for item in value[:50]]
        case _:
            return value


def _quantile(values: "deque[float]", percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
