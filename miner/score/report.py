"""What a score log says: outcomes, punctuality, stage times, validators and earnings."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from sys import float_info
from typing import Any

from miner.score.earnings import Earnings
from miner.score.fields import LASTING, UNKNOWN, Event, Fields, parse
from miner.score.scoring import Scoring
from miner.score.tally import CALLER_SAMPLE, OTHERS, Tally, answered_of, bounded
from miner.score.timeline import Timeline
from miner.score.validators import ValidatorTally
from miner.score.words import Words
from protocol.text import printable

RECENT = 50

LAST_ANSWERS = 20_000
"""Answers that are kept one by one, for what happened lately."""

_SCORES = 500
_LOSSES = 100
_LONGEST_ID = 64
_DEEPEST = 4


@dataclass
class LoggedLife:
    """What the log says of the process that began last.

    Attributes:
        state: The service's state; "unknown" before its first word of it, "stopped" at its end.
        state_at: Since when, in seconds since the epoch; None if no line says so.
        pid: Its number.
        started_at: When it began.
        version: Of the program.
        preset: Its preset.
        transports: Ways on which it takes tasks.
        budget_s: Seconds that an answer may take.
        hotkey: The miner's.
        uid: Its number on the subnet.
        netuid: The subnet.
        network: The chain.
        exit_code: With which it ended; None while it runs.
        lost_engines: Engines that died, in this run.
        chain_old_s: Age of the last reading of the chain when the log last complained of it; None
            while the chain can be read.
    """

    state: str = UNKNOWN
    state_at: float | None = None
    pid: int | None = None
    started_at: float | None = None
    version: str | None = None
    preset: str | None = None
    transports: tuple[str, ...] = ()
    budget_s: float | None = None
    hotkey: str | None = None
    uid: int | None = None
    netuid: int | None = None
    network: str | None = None
    exit_code: int | None = None
    lost_engines: list[str] = field(default_factory=list)
    chain_old_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The process as JSON-ready values."""
        return {**vars(self), "transports": list(self.transports)}


@dataclass(frozen=True)
class LastAnswer:
    """One of the last answers, for alerts.

    Attributes:
        at: When it was given, in seconds since the epoch.
        outcome: Of the request.
        owed: Whether it was owed.
        on_time: Whether it was completed within its budget.
        total: Seconds that it took, if it was completed.
    """

    at: float
    outcome: str
    owed: bool
    on_time: bool
    total: float | None


class ScoreReport:
    """Tallies that grow with a log; feed it lines in the order in which they were written.

    Args:
        since: Seconds since the epoch. Of earlier lines only what lasts is taken: the state, the
            process, and the earnings then.

    Attributes:
        overall: Of all callers.
        callers: By hotkey.
        validators: By hotkey; those that were asked for tasks.
        scoring: Own scores, and what validators made of them.
        words: Of prompts, where the networks know few.
        timeline: The course of it all.
        earnings: What the chain said.
        life: The process that began last.
        refused: Callers turned away, by reason code.
        refused_because: The last reason of each of those codes.
        recent: The last answers, the newest last, as they were written.
        completed: The last completed ones.
        answers: The last answers in short, the newest last.
        scores: Fate and score by task, of the last settled tasks.
        accepted_at: When a validator last accepted a result, in seconds since the epoch.
        notes: What was wrong with engines and the log, the newest last.
        first_at: When the first line counted was written, in seconds since the epoch.
        last_at: The same of the last line.
        damaged: Lines that hold no event.
        odd: Events with a field of another type than documented.
        lost: Lines that the miner could not write.
        losses: When it wrote so, and of how many, the newest last.
    """

    def __init__(self, since: float = -inf) -> None:
        self.since = since
        self.overall = Tally()
        self.callers: dict[str, Tally] = defaultdict(lambda: Tally(CALLER_SAMPLE))
        self.validators: dict[str, ValidatorTally] = defaultdict(ValidatorTally)
        self.scoring = Scoring()
        self.words = Words()
        self.timeline = Timeline()
        self.earnings = Earnings()
        self.life = LoggedLife()
        self.refused: Counter[str] = Counter()
        self.refused_because: dict[str, str] = {}
        self.recent: deque[Event] = deque(maxlen=RECENT)
        self.completed: deque[Event] = deque(maxlen=RECENT)
        self.answers: deque[LastAnswer] = deque(maxlen=LAST_ANSWERS)
        self.scores: dict[str, tuple[str, float | None]] = {}
        self.accepted_at: float | None = None
        self.notes: deque[str] = deque(maxlen=RECENT)
        self.first_at: float | None = None
        self.last_at: float | None = None
        self.damaged = 0
        self.odd = 0
        self.lost = 0
        self.losses: deque[tuple[float, int]] = deque(maxlen=_LOSSES)
        self._old = False
        self._readers: dict[str, Callable[[Fields, float | None], None]] = {
            "answered": self._answered,
            "feedback": self._feedback,
            "pulled": self._pulled,
            "refused": self._refused,
            "earnings": self._earned,
            "chain_old": self._chain_old,
            "chain_back": self._chain_back,
            "miner_started": self._started,
            "state_changed": self._state_changed,
            "miner_stopped": self._stopped,
            "log_lost": self._log_lost,
            "engine_suspect": self._engine,
            "engine_back": self._engine,
            "engine_lost": self._engine,
        }

    @property
    def state(self) -> str:
        """As the log says; "unknown" before its first word of it."""
        return self.life.state

    @property
    def pid(self) -> int | None:
        """The process that began last, where the log says so."""
        return self.life.pid

    def read(self, line: str) -> None:
        """Takes one line in, whatever it holds; an empty one says nothing."""
        event = parse(line)
        if event is not None:
            self.add(event)
            return
        text = line.strip().removeprefix("\ufeff")
        # After a crash of the machine, a run of NULs may stand before a sound line.
        sound = text.strip("\0")
        event = parse(sound) if sound else None
        if event is not None:
            self.add(event)
        self.damaged += bool(text) and not self._old and (event is None or sound != text)

    def add(self, event: Event) -> None:
        """Takes one event in; unknown kinds only show that the miner lived then."""
        fields = Fields(event)
        moment = fields.number("unix")
        kind = event["event"]
        if moment is not None:
            self.last_at = moment
            self._old = moment < self.since
        if self._old and kind not in LASTING:
            return
        if self.first_at is None and not self._old:
            self.first_at = moment
        take = self._readers.get(kind)
        if take is not None:
            take(fields, moment)
        self.odd += fields.odd and not self._old

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values."""
        return {
            "state": self.state,
            "pid": self.pid,
            "life": self.life.as_dict(),
            "first_line_unix": self.first_at,
            "last_line_unix": self.last_at,
            "damaged_lines": self.damaged,
            "odd_lines": self.odd,
            "lost_lines": self.lost,
            "overall": self.overall.as_dict(),
            "callers": {caller: tally.as_dict() for caller, tally in self.callers.items()},
            "validators": {name: tally.as_dict() for name, tally in self.validators.items()},
            "accepted_unix": self.accepted_at,
            "scoring": self.scoring.as_dict(),
            "words": self.words.as_dict(),
            "earnings": self.earnings.as_dict(),
            "timeline": self.timeline.as_dict(),
            "refused": dict(self.refused),
            "refused_because": self.refused_because,
            "notes": list(self.notes),
            "recent": [plain(event) for event in self.recent],
        }

    def _answered(self, fields: Fields, at: float | None) -> None:
        answer = answered_of(fields)
        self.overall.count(answer)
        self.callers[bounded(self.callers, answer.caller, OTHERS)].count(answer)
        self.scoring.answered(fields)
        self.words.answered(fields)
        self.recent.append(fields.event)
        completed = answer.outcome == "completed"
        if completed:
            self.completed.append(fields.event)
        if at is not None:
            self.timeline.answered(at, answer)
            total = answer.total if completed else None
            self.answers.append(LastAnswer(at, answer.outcome, answer.owed, answer.on_time, total))

    def _feedback(self, fields: Fields, at: float | None) -> None:
        caller, score = fields.name("caller"), fields.number("task_fidelity_score")
        if not fields.flag("validation_failed") and score is not None:
            self.overall.judged(score)
            self.callers[bounded(self.callers, caller, OTHERS)].judged(score)
        fate = self.validators[bounded(self.validators, caller, OTHERS)].settled(fields, at)
        self.scoring.settled(fields, fate)
        fields.check_texts("task_id")
        self.scores[str(fields.event.get("task_id", ""))[:_LONGEST_ID]] = (fate, score)
        if len(self.scores) > _SCORES:
            del self.scores[next(iter(self.scores))]
        if at is not None:
            self.timeline.settled(at, fate, score)
            self.accepted_at = at if fate == "accepted" else self.accepted_at

    def _pulled(self, fields: Fields, at: float | None) -> None:
        name = bounded(self.validators, fields.name("caller"), OTHERS)
        self.validators[name].pulled(fields, at)

    def _refused(self, fields: Fields, at: float | None) -> None:
        code = bounded(self.refused, fields.name("reason_code"), OTHERS)
        count = fields.number("count")
        self.refused[code] += 1 if count is None else int(count)
        self.refused_because[code] = fields.text("reason", "")

    def _earned(self, fields: Fields, at: float | None) -> None:
        self.earnings.add(fields, at, before=self._old)

    def _chain_old(self, fields: Fields, at: float | None) -> None:
        self.life.chain_old_s = fields.number("age_s")

    def _chain_back(self, fields: Fields, at: float | None) -> None:
        self.life.chain_old_s = None

    def _started(self, fields: Fields, at: float | None) -> None:
        pid, uid, netuid = (fields.number(name) for name in ("pid", "uid", "netuid"))
        self.life = LoggedLife(
            state="starting",
            state_at=at,
            started_at=at,
            pid=None if pid is None else int(pid),
            version=fields.text("version"),
            preset=fields.text("preset"),
            transports=fields.names("transports"),
            budget_s=fields.number("budget_s"),
            hotkey=fields.text("hotkey", "") or None,
            uid=None if uid is None else int(uid),
            netuid=None if netuid is None else int(netuid),
            network=fields.text("network", "") or None,
        )

    def _state_changed(self, fields: Fields, at: float | None) -> None:
        self.life.state, self.life.state_at = fields.name("state"), at

    def _stopped(self, fields: Fields, at: float | None) -> None:
        code = fields.number("exit_code")
        self.life.state, self.life.state_at = "stopped", at
        self.life.exit_code = None if code is None else int(code)

    def _log_lost(self, fields: Fields, at: float | None) -> None:
        lost = int(fields.number("count") or 0)
        self.lost += lost
        self.losses.append((at or 0.0, lost))
        self.notes.append(f"{lost} lines were not written: {fields.text('reason')}")

    def _engine(self, fields: Fields, at: float | None) -> None:
        kind, engine = fields.event["event"], fields.text("engine")
        self.notes.append(f"{kind}: {engine} {fields.text('reason', '')}".strip())
        if kind == "engine_lost" and len(self.life.lost_engines) < RECENT:
            self.life.lost_engines.append(engine)


def plain(value: Any, depth: int = 0) -> Any:
    """Returns a value of JSON as a reader may trust it: finite, harmless, not deep."""
    match value:
        case str():
            return printable(value)
        case int() | float():
            # An integer may be larger than any float, and cannot be written with decimals then.
            return value if -float_info.max <= value <= float_info.max else None
        case dict() | list() if depth == _DEEPEST:
            return "..."
        case dict():
            return {printable(key, 40): plain(v, depth + 1) for key, v in list(value.items())[:50]}
        case list():
            return [plain(item, depth + 1) for item in value[:50]]
        case _:
            return value
