"""The monitor's picture of a report for a terminal of 80 columns."""

import os
import textwrap
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from miner.file_lock import FOLDER_LOCK, look
from miner.score import FILE_NAME
from miner.score.alerts import Alert, AlertSettings, alerts
from miner.score.fields import UNKNOWN
from miner.score.report import ScoreReport, plain
from miner.score.scoring import bins_of, in_short
from miner.score.tally import Tally
from miner.score.validators import ValidatorTally

HEIGHT = 23
"""Lines of a terminal of 24, less the one of the prompt."""

_WIDTH = 80
_ALERT_LINES, _MOST_STAGES = 6, 9
_LINES_OF_ONE_ALERT = 3
_LEAST_RECENT = 4
_ROOM_FOR_CALIBRATION = 8
_SILENT_S = 60.0


def life(report: ScoreReport, log: Path | None, now: float | None = None) -> tuple[str, str]:
    """Returns the miner's state, and what is known of its process, in words.

    A process that was killed cannot say so in its log: its lock tells.

    Args:
        report: Says what the log says.
        log: The log or its folder; None to go by the report alone.
        now: Seconds since the epoch.
    """
    now = time.time() if now is None else now
    held, holder = (None, None) if log is None else look(log_file(log).with_name(FOLDER_LOCK))
    state, words = report.state, "" if report.pid is None else f"process {report.pid}"
    if held and holder is not None:
        words = f"process {holder.pid}" + ("" if holder.is_local else f" on {holder.host}")
    if held and (state == "stopped" or report.last_at is None):
        state = "starting"
    if held is False and holder is not None and state not in ("stopped", UNKNOWN):
        state, words = "gone", f"process {holder.pid} died (was {report.state})"
    if report.last_at is None:
        return state, words
    age = now - report.last_at
    clock = datetime.fromtimestamp(report.last_at, UTC)
    day = "%H:%M:%S" if abs(age) < 86_400 else "%Y-%m-%d %H:%M:%S"
    since = f"since {clock:{day}} UTC ({_duration(age)})"
    silence = f"no line {since}" if age > _SILENT_S and state != "stopped" else f"last line {since}"
    return state, ", ".join(filter(None, (words, silence.replace("last line since", "last line"))))


def log_file(log: Path) -> Path:
    """Returns the score log of a folder, or the file that was given."""
    return log / FILE_NAME if os.path.isdir(log) else log


def render(
    report: ScoreReport,
    log: Path | None = None,
    *,
    height: int = HEIGHT,
    now: float | None = None,
    settings: AlertSettings | None = None,
) -> Group:
    """The report for a terminal of 80 columns, the newest answers first.

    Args:
        report: What to show; texts of strangers are shown as they are, never obeyed.
        log: The log or its folder, to find out whether its process lives.
        height: Lines that may be filled.
        now: Seconds since the epoch.
        settings: Thresholds of the alerts.
    """
    now = time.time() if now is None else now
    head = _head(report, log, now, settings)
    below = _below(report, now, most=max(6, height - len(head) - 3 - _LEAST_RECENT))
    left = max(2, height - len(head) - below.row_count - 3)
    newest = _newest(report, left)
    return Group(*head, Text(), _title("newest answers"), *newest, Text(), below)


@cache
def stage_order() -> tuple[str, ...]:
    """The stages of every back end in an order in which each runs its own, then "total"."""
    # Imported only when there is something to show, so that --help and --json start at once.
    from generation.lift import BACK_ENDS
    from generation.stage import ENCODE, PICTURE_STAGES, RATE, REFINE, SCORE_STAGE

    order = TopologicalSorter[str]()
    for back_end in BACK_ENDS.values():
        chain = (*PICTURE_STAGES, RATE, *back_end.stages, REFINE, ENCODE, SCORE_STAGE)
        for before, after in pairwise(chain):
            order.add(after.name, before.name)
    return (*order.static_order(), "total")


def stage_rank(stage: str) -> tuple[int, str]:
    """Sorts stages as they run; those of other versions come last."""
    order = stage_order()
    return (order.index(stage) if stage in order else len(order), stage)


def _head(
    report: ScoreReport, log: Path | None, now: float, settings: AlertSettings | None
) -> list[Text]:
    tally = report.overall
    state, words = life(report, log, now)
    style = {"ready": "bold green", "gone": "bold red", "dead": "bold red"}.get(state, "bold")
    lines = [
        Text.assemble("state: ", (state, style), f"   {words}"),
        Text(
            f"answers: {tally.answers:,}   on time: {_share(tally)}   "
            f"rejected: {tally.rejected:,}   callers left: {tally.left:,}"
        ),
        Text(f"rungs: {_counts(tally.rungs.most_common())}"),
        Text(f"outcomes: {_counts((code, n) for (_, code), n in tally.outcomes.most_common())}"),
    ]
    more = [words for words in (_chosen(report), _ignored(report)) if words]
    lines += map(Text, more)
    if earned := _earned(report):
        lines.append(Text(earned))
    bad = (
        (report.damaged, "damaged line"),
        (report.odd, "odd line"),
        (report.lost, "lost line"),
    )
    if any(count for count, _ in bad):
        words = ", ".join(
            f"{count:,} {what}" + ("s" if count != 1 else "") for count, what in bad if count
        )
        lines.append(Text(words, "yellow"))
    found = alerts(report, state=state, now=now, settings=settings)
    most = _ALERT_LINES - len(more)
    shown = _alerts(found, most)
    if report.notes and len(shown) < most:
        lines.append(Text(report.notes[-1], "yellow"))
    return [_on_one_line(line) for line in (*lines, *shown)]


def _alerts(found: Sequence[Alert], most: int) -> list[Text]:
    """The alerts, the critical first, wrapped so that each ends with what to do."""
    lines: list[Text] = []
    for place, alert in enumerate(found):
        style = {"critical": "bold red", "warning": "yellow"}[alert.level]
        own = textwrap.wrap(
            str(alert),
            _WIDTH,
            subsequent_indent="  ",
            max_lines=_LINES_OF_ONE_ALERT,
            placeholder=" …",
            break_on_hyphens=False,
        )
        others = len(found) - place - 1
        if len(lines) + len(own) + (others > 0) > most:
            lines.append(Text(f" and {others + 1} more", "dim"))
            break
        lines += (Text(line, style) for line in own)
    return lines


def _chosen(report: ScoreReport) -> str:
    scoring = report.scoring
    if scoring.gated_share is None or scoring.per_answer is None:
        return ""
    parts = [f"candidates: {scoring.per_answer:.1f} in {scoring.seconds or 0.0:.1f} s"]
    if scoring.mean_first is not None and scoring.mean_best is not None:
        parts.append(f"own score {scoring.mean_first:.3f} > {scoring.mean_best:.3f}")
    parts.append(f"gated: {scoring.gated:,} ({scoring.gated_share:.1%})")
    return "   ".join(parts)


def _ignored(report: ScoreReport) -> str:
    words = report.words
    if not words.ignored:
        return ""
    most = ", ".join(f"{word} {count:,}" for word, count in words.most_ignored)
    return f"ignored words: in {words.with_ignored:,} of {words.texts:,} texts: {most}"


def _earned(report: ScoreReport) -> str:
    last = report.earnings.last
    if last is None:
        return ""
    parts = []
    if last.emission is not None:
        parts.append(f"{last.emission:.4f} alpha an epoch")
    if last.per_day is not None:
        parts.append(f"{last.per_day:.2f} a day")
    if last.incentive is not None:
        parts.append(f"incentive {last.incentive:.5f}")
    if last.place is not None and last.incentive:
        parts.append(f"place {last.place} of {last.earners}")
    return "earns: " + ", ".join(parts)


def _newest(report: ScoreReport, height: int) -> list[Text]:
    """The newest answers first: one line each, and one more for the reason of those without."""
    lines: list[Text] = []
    for event in reversed(report.recent):
        entry = _answer(plain(event))
        if len(lines) + len(entry) > height:
            break
        lines += entry
    return [_on_one_line(line) for line in lines] or [Text(" none")]


def _answer(event: Any) -> list[Text]:
    def word(name: str) -> str:
        value = event.get(name)
        return value if isinstance(value, str) else "?"

    total = event.get("total_s")
    sound = isinstance(total, int | float) and 0 <= total < 1e6
    completed = event.get("outcome") == "completed"
    reason = in_short(event) or word("reason_code")
    style = ("green" if event.get("on_time") is True else "yellow") if completed else "red"
    line = Text.assemble(
        f" {word('ts')[11:19]:8}  ",
        (f"{word('outcome')[:10]:10}", style),
        f" {f'{total:.2f} s' if sound else '?':>9}  {reason[:21]:21}"
        f"  {word('caller')[:8]:8}  {word('task_id')}",
    )
    return [line] if completed else [line, Text(f"           {word('reason')}", "dim")]


def _below(report: ScoreReport, now: float, *, most: int) -> Table:
    """Stage times on the left; validators, calibrations, callers and others on the right."""
    left = _seconds(report.overall, min(_MOST_STAGES, most - 1))
    right = _people(report, now, most)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=27, no_wrap=True)
    grid.add_column(width=50, no_wrap=True)
    for row in range(max(len(left), len(right))):
        cells = (lines[row] if row < len(lines) else Text() for lines in (left, right))
        grid.add_row(*cells)
    return grid


def _seconds(tally: Tally, most: int) -> list[Text]:
    percentiles = tally.percentiles()
    names = sorted(percentiles, key=stage_rank)
    lines = [_title(f"{'seconds':9}{'p50':>8}{'p95':>8}")]
    if len(names) > most:
        longest = sorted(names, key=lambda name: (name != "total", -percentiles[name][1]))[:most]
        names = [name for name in names if name in longest]
    for stage in names:
        p50, p95 = percentiles[stage]
        lines.append(Text(f" {stage[:9]:9}{p50:>8.3f}{p95:>8.3f}"))
    return [_on_one_line(line) for line in lines]


def _people(report: ScoreReport, now: float, most: int) -> list[Text]:
    """Validators, calibrations, the callers with most answers, and why others were turned away."""
    validators = sorted(report.validators.items(), key=lambda item: -item[1].tasks)
    callers = sorted(report.callers.items(), key=lambda item: -item[1].answers)
    if validators:  # Their own rows say more.
        callers = [(name, tally) for name, tally in callers if name not in report.validators]
    refused = report.refused.most_common()
    sections = [
        (_VALIDATOR_TITLE, [_validator(name, tally, now) for name, tally in validators]),
        *(_calibration(report) if most >= _ROOM_FOR_CALIBRATION else []),
        (_CALLER_TITLE, [_caller(name, tally) for name, tally in callers]),
        ("turned away", [_turned_away(report, code, count) for code, count in refused]),
    ]
    if not validators and not callers:
        shown = [section for section in sections if section[1] or section[0] == _CALLER_TITLE]
    else:
        shown = [section for section in sections if section[1]]
    lines: list[Text] = []
    fair = max(1, most // len(shown) - 1)
    for place, (title, rows) in enumerate(shown, start=1):
        later = sum(1 + min(fair, len(others)) for _, others in shown[place:])
        lines += [_title(title), *_cut(rows, max(1, most - len(lines) - 1 - later))]
    return [_on_one_line(line) for line in lines]


_CALLER_TITLE = f"{'caller':12}{'answers':>9}{'on time':>9}{'fidelity':>10}"
_VALIDATOR_TITLE = (
    f"{'validator':11}{'ok':>5}{'low':>4}{'none':>5}{'fid.':>6}{'duel':>6}{'4 h':>5}{'next':>7}"
)


def _caller(name: str, tally: Tally) -> Text:
    fidelity = "" if tally.mean_fidelity is None else f"{tally.mean_fidelity:.3f}"
    return Text(f" {_short(name):12}{tally.answers:>9,}{_share(tally):>9}{fidelity:>10}")


def _validator(name: str, tally: ValidatorTally, now: float) -> Text:
    reported = tally.reported
    wait = None if tally.next_pull_at is None else max(0.0, tally.next_pull_at - now)
    return Text(
        f" {_short(name):11}{tally.fates['accepted']:>5,}{tally.fates['refused']:>4,}"
        f"{tally.fates['skipped']:>5,}{f'{tally.ema:.3f}' if tally.scored else '-':>6}"
        f"{_whole(reported.get('current_duel_rating')):>6}"
        f"{_whole(reported.get('generations_within_the_window')):>5}"
        f"{'-' if wait is None else f'{wait:.0f} s':>7}",
        "yellow" if tally.no_answer else "",
    )


def _turned_away(report: ScoreReport, code: str, count: int) -> Text:
    because = report.refused_because.get(code, "")
    return Text(f" {count:>7,} {code}" + (f": {because}" if because else ""))


def _calibration(report: ScoreReport) -> list[tuple[str, list[Text]]]:
    """What validators made of the results of the scorer that they judged most; the best first."""
    pairs_of = report.scoring.pairs
    if not pairs_of:
        return []
    scorer, pairs = max(pairs_of.items(), key=lambda item: len(item[1]))
    implied = pairs[-1].threshold + report.scoring.calibration(scorer).margin
    title = f"{f'own score, implied {implied:.3f}':24}{'judged':>7}{'accepted':>9}{'given':>7}"
    rows = [
        Text(
            f" {f'{each.low:.2f} to {each.high:.2f}':24}{each.judged:>7,}"
            f"{f'{each.accepted / each.judged:.0%}':>9}"
            f"{'-' if each.given is None else f'{each.given:.3f}':>7}"
        )
        for each in reversed(bins_of(pairs))
    ]
    return [(title, rows)]


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _cut(rows: Sequence[Text], most: int) -> list[Text]:
    """The first rows, and how many more there are if they do not fit."""
    if len(rows) <= most:
        return list(rows)
    return [*rows[: most - 1], Text(f" and {len(rows) - most + 1} more", "dim")]


def _title(text: str) -> Text:
    return Text(f" {text}", "bold")


def _on_one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _short(name: str) -> str:
    return name if len(name) <= 11 else f"{name[:6]}..{name[-3:]}"


def _share(tally: Tally) -> str:
    return f"{tally.on_time_share:.1%}" if tally.owed else "-"


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts) or "none"


def _duration(seconds: float) -> str:
    """Seconds ago, in words."""
    if seconds < 0:
        return "in the future: the clocks differ"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
