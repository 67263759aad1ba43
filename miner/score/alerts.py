"""What an operator should know now, from a report of the score log. Pure: a clock passed in.

An alert is about the present: it looks at the last hour or so before `now`, whatever the period of
the report is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from miner.score.fields import UNKNOWN
from miner.score.report import LastAnswer, ScoreReport
from miner.score.scoring import RECENT_PAIRS, expected_and_seen
from miner.score.tally import quantiles

Level = Literal["critical", "warning"]

GONE, STOPPED, DEAD = "gone", "stopped", "dead"
_AT_WORK = frozenset({"ready", "suspect", UNKNOWN})
_DEREGISTERED = 3
"""Exit status of a miner that has lost its uid."""

_LEAST_REQUESTS = 3


@dataclass(frozen=True)
class AlertSettings:
    """Thresholds.

    Attributes:
        window_s: Seconds before now that count for shares and percentiles.
        least_answers: Answers in them without which shares and percentiles say nothing.
        in_time: Least share of the answers owed that are completed within their budget.
        in_time_critical: Below this share it is critical.
        dropped: Largest share of the answers that are drops.
        p95_s: Longest 95th percentile of the seconds from receipt to answer.
        accepted_s: Seconds without an accepted result, where tasks are pulled.
        completed_s: Seconds with requests in which none is completed.
        ready_s: Seconds that a miner may take until it is ready (again).
        rejected: Results in a row that a validator rejects.
        disagreement: Largest distance between the share of results that the own scorer would have
            accepted and the share that validators accept.
        lost_s: Seconds for which lost lines are worth an alert.
    """

    window_s: float = 3600.0
    least_answers: float = 20.0
    in_time: float = 0.99
    in_time_critical: float = 0.95
    dropped: float = 0.20
    p95_s: float = 25.0
    accepted_s: float = 1800.0
    completed_s: float = 1800.0
    ready_s: float = 600.0
    rejected: float = 5.0
    disagreement: float = 0.25
    lost_s: float = 86_400.0


@dataclass(frozen=True)
class Alert:
    """One thing that is wrong.

    Attributes:
        code: Stable, one word.
        level: Whether results are lost now, or soon.
        words: What is so, in numbers.
        advice: What to do.
    """

    code: str
    level: Level
    words: str
    advice: str

    def __str__(self) -> str:
        return f"{self.level.upper()} {self.code}: {self.words}; {self.advice}"


def alerts(
    report: ScoreReport, *, state: str, now: float, settings: AlertSettings | None = None
) -> list[Alert]:
    """Returns what is wrong now, the critical first.

    Args:
        report: What the log says.
        state: The miner's state, "gone" if its process died without saying so.
        now: Seconds since the epoch.
        settings: The thresholds.
    """
    judged = _Judged(report, state, now, settings or AlertSettings())
    found = [*judged.process(), *judged.results(), *judged.answers(), *judged.surroundings()]
    return sorted(found, key=lambda alert: alert.level != "critical")


@dataclass(frozen=True)
class _Judged:
    report: ScoreReport
    state: str
    now: float
    settings: AlertSettings

    def process(self) -> Iterator[Alert]:
        """The miner itself."""
        life, log = self.report.life, "read the last lines of miner.log"
        if self.state == GONE:
            last = self.report.last_at or self.now
            words = f"the process died; its last line is {_ago(self.now - last)} old"
            yield Alert("miner_gone", "critical", words, f"start it again; {log}")
        elif self.state == STOPPED and life.exit_code == _DEREGISTERED:
            words = f"the hotkey has lost uid {life.uid}; the miner stopped {self._since()} ago"
            yield Alert("uid_lost", "critical", words, "register the hotkey again and start it")
        elif self.state == STOPPED:
            level: Level = "critical" if life.exit_code else "warning"
            words = f"it stopped with status {life.exit_code} {self._since()} ago"
            yield Alert("miner_stopped", level, words, f"start it again; {log}")
        elif self.state == DEAD:
            words = f"the last engine was lost {self._since()} ago"
            yield Alert("miner_dead", "critical", words, f"start it again; {log}")
        elif (
            self.state not in ("ready", UNKNOWN)
            and life.state_at is not None
            and self.now - life.state_at > self.settings.ready_s
        ):
            words = f"it has been {self.state} for {self._since()}"
            yield Alert("not_ready", "critical", words, log)
        if life.lost_engines and self.state not in (GONE, STOPPED, DEAD):
            words = f"engines lost since the start: {', '.join(life.lost_engines[-3:])}"
            yield Alert("engine_lost", "critical", words, "restart the miner; check its GPU")

    def results(self) -> Iterator[Alert]:
        """What validators make of the results."""
        report, settings = self.report, self.settings
        pulls = "pull" in report.life.transports or bool(report.validators)
        since = max(report.accepted_at or 0.0, report.life.state_at or report.first_at or 0.0)
        silence = self.now - since
        if pulls and self.state in _AT_WORK and silence > settings.accepted_s:
            what = "" if report.accepted_at else ", and none before in the period that was read"
            words = f"no accepted result for {_ago(silence)}{what}"
            advice = "see the validators' rows: do they give tasks, and what becomes of them?"
            yield Alert("no_accepted_result", "critical", words, advice)
        for hotkey, tally in report.validators.items():
            judged = [fate for _, fate in tally.last if fate in ("accepted", "refused")]
            last = judged[-int(settings.rejected) :]
            if len(last) >= settings.rejected and "accepted" not in last:
                name = hotkey if tally.uid is None else f"{hotkey} (uid {tally.uid})"
                words = f"validator {name} rejected the last {len(last)} results"
                advice = "check --wallet.hotkey, and a result with inspect_asset"
                yield Alert("validator_rejects_everything", "warning", words, advice)

        yield from self._disagreements()

    def answers(self) -> Iterator[Alert]:
        """The answers of the last hour."""
        settings, lately = self.settings, list(self._last(self.settings.window_s))
        window = _ago(settings.window_s)
        owed = [answer for answer in lately if answer.owed]
        if len(owed) >= settings.least_answers:
            share = sum(answer.on_time for answer in owed) / len(owed)
            if share < settings.in_time:
                level: Level = "critical" if share < settings.in_time_critical else "warning"
                words = (
                    f"{share:.1%} of {len(owed)} answers in the last {window} were in time, less "
                    f"than {settings.in_time:.1%}"
                )
                advice = "see the reasons of the others; a lower preset or a faster GPU helps"
                yield Alert("late_answers", level, words, advice)
        if len(lately) >= settings.least_answers:
            dropped = sum(answer.outcome == "dropped" for answer in lately)
            if dropped / len(lately) > settings.dropped:
                words = (
                    f"{dropped / len(lately):.1%} of {len(lately)} requests in the last {window} "
                    f"were dropped, more than {settings.dropped:.1%}"
                )
                advice = "see the reason codes; predicted_late: the machine is too slow or too busy"
                yield Alert("dropped_requests", "warning", words, advice)
        totals = [answer.total for answer in lately if answer.total is not None]
        if len(totals) >= settings.least_answers:
            (p95,) = quantiles(totals, (0.95,))
            if p95 > settings.p95_s:
                words = (
                    f"p95 of {len(totals)} answers in the last {window} is {p95:.1f} s, over "
                    f"{settings.p95_s:g} s"
                )
                advice = "see which stage is slow; what else uses the GPU?"
                yield Alert("slow_answers", "warning", words, advice)
        yield from self._none_completed()

    def surroundings(self) -> Iterator[Alert]:
        """The disk and the chain."""
        report, settings = self.report, self.settings
        lost = sum(n for at, n in report.losses if self.now - at <= settings.lost_s)
        if lost:
            words = f"{lost:,} lines of the score log were lost in the last {_ago(settings.lost_s)}"
            yield Alert("lines_lost", "warning", words, "free the disk of --log.dir")
        if report.life.chain_old_s is not None and self.state in _AT_WORK:
            words = f"the last reading of the chain was {_ago(report.life.chain_old_s)} old"
            advice = "check --subtensor.network and the connection; old readings refuse new callers"
            yield Alert("chain_old", "warning", words, advice)

    def _disagreements(self) -> Iterator[Alert]:
        """Scorers that say something else than validators do."""
        for scorer, pairs in self.report.scoring.pairs.items():
            last = list(pairs)[-RECENT_PAIRS:]
            if len(last) < self.settings.least_answers:
                continue
            expected, seen = expected_and_seen(last)
            if abs(expected - seen) > self.settings.disagreement:
                words = (
                    f"scorer {scorer} would have accepted {expected:.0%} of the last {len(last)} "
                    f"results that validators judged; they accepted {seen:.0%}"
                )
                advice = "see the calibration table; set --gate.margin, or use another scorer"
                yield Alert("scorer_disagrees", "warning", words, advice)

    def _none_completed(self) -> Iterator[Alert]:
        owed = [answer for answer in self._last(self.settings.completed_s) if answer.owed]
        if len(owed) >= _LEAST_REQUESTS and not any(a.outcome == "completed" for a in owed):
            words = (
                f"none of {len(owed)} requests in the last {_ago(self.settings.completed_s)} was "
                "completed"
            )
            yield Alert("none_completed", "critical", words, "see the reasons of the answers")

    def _last(self, seconds: float) -> Iterator[LastAnswer]:
        begin = self.now - seconds
        return (answer for answer in self.report.answers if answer.at >= begin)

    def _since(self) -> str:
        at = self.report.life.state_at
        return "some time" if at is None else _ago(self.now - at)


def _ago(seconds: float) -> str:
    for size, unit in ((86_400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2.0 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
