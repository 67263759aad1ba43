"""How the miner is doing, read from its score log alone.

python -m scripts.monitor_scores logs                     # with the files set aside
python -m scripts.monitor_scores logs/score.jsonl         # this alone, or several, oldest first
python -m scripts.monitor_scores --follow logs            # until ctrl-C
python -m scripts.monitor_scores --json logs/score.jsonl
"""

import argparse
import json
import os
import sys
import time
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from miner.file_lock import FOLDER_LOCK, look
from miner.interpreter import program_name
from miner.score import FILE_NAME
from miner.score.fields import UNKNOWN
from miner.score.following import Follower, files_beside
from miner.score.report import ScoreReport, plain
from miner.score.tally import Tally
from miner.surroundings import settle_terminal
from protocol.text import printable

HEIGHT = 23
"""Lines of a terminal of 24, less the one of the prompt."""

_MOST_CALLERS, _MOST_REFUSALS, _MOST_STAGES = 3, 3, 9
_LEAST_RECENT = 4
_SILENT_S = 60.0


def main(argv: list[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    settle_terminal()
    parser = argparse.ArgumentParser(
        prog=program_name("scripts.monitor_scores"), description=__doc__
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="score log, or the folder of one: with the files set aside there; oldest first",
    )
    parser.add_argument("--follow", action="store_true", help="keep reading the last LOG")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument(
        "--interval", type=_interval, default=2.0, help="seconds between looks, 0.1 to 3600 (2)"
    )
    options = parser.parse_args(argv)
    if options.json and options.follow:
        parser.error("--json is one object, --follow has no end: give one of them")
    for path in options.logs:
        if problem := _problem(path):
            print(
                f"no score log at {printable(str(path))}: {problem}. The miner writes score.jsonl "
                "into --log.dir (logs by default); start it with: python -m neurons.miner --help",
                file=sys.stderr,
            )
            return 2
    report = ScoreReport()
    *earlier, last = options.logs
    for path in earlier if options.follow else options.logs:
        with closing(_follower(path)) as follower:
            for line in chain(follower.look(), follower.rest()):
                report.read(line)
    try:
        if options.follow:
            _follow(report, last, options.interval)
        elif options.json:
            state, words = life(report, last)
            print(json.dumps({**report.as_dict(), "state": state, "process": words}, indent=2))
        else:
            console = Console(highlight=False)
            console.print(render(report, last, height=_height(console)))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # Its reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def life(report: ScoreReport, log: Path | None, now: float | None = None) -> tuple[str, str]:
    """Returns the miner's state, and what is known of its process, in words.

    A process that was killed cannot say so in its log: its lock tells.

    Args:
        report: Says what the log says.
        log: The log or its folder; None to go by the report alone.
        now: Seconds since the epoch.
    """
    now = time.time() if now is None else now
    held, holder = (None, None) if log is None else look(_file(log).with_name(FOLDER_LOCK))
    state, words = report.state, "" if report.pid is None else f"process {report.pid}"
    if held and holder is not None:
        words = f"process {holder.pid}" + ("" if holder.is_local else f" on {holder.host}")
    if held and (state == "stopped" or report.last_at is None):
        state = "starting"
    if held is False and holder is not None and state not in ("stopped", UNKNOWN):
        state, words = "gone", f"process {holder.pid} ended without a word (was {report.state})"
    if report.last_at is None:
        return state, words
    age = now - report.last_at
    clock = datetime.fromtimestamp(report.last_at, UTC)
    day = "%H:%M:%S" if abs(age) < 86_400 else "%Y-%m-%d %H:%M:%S"
    since = f"since {clock:{day}} UTC ({_duration(age)})"
    silence = f"no line {since}" if age > _SILENT_S and state != "stopped" else f"last line {since}"
    return state, ", ".join(filter(None, (words, silence.replace("last line since", "last line"))))


def render(report: ScoreReport, log: Path | None = None, *, height: int = HEIGHT) -> Group:
    """The report for a terminal of 80 columns, the newest answers first.

    Args:
        report: What to show; texts of strangers are shown as they are, never obeyed.
        log: The log or its folder, to find out whether its process lives.
        height: Lines that may be filled.
    """
    head, below = _head(report, log), _below(report)
    left = max(_LEAST_RECENT, height - len(head) - below.row_count - 3)
    newest = _newest(report, left)
    return Group(*head, Text(), _title("newest answers"), *newest, Text(), below)


def _head(report: ScoreReport, log: Path | None) -> list[Text]:
    tally = report.overall
    state, words = life(report, log)
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
    if report.notes:
        lines.append(Text(report.notes[-1], "yellow"))
    for line in lines:
        _on_one_line(line)
    return lines


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
    style = ("green" if event.get("on_time") is True else "yellow") if completed else "red"
    line = Text.assemble(
        f" {word('ts')[11:19]:8}  ",
        (f"{word('outcome')[:10]:10}", style),
        f" {f'{total:.2f} s' if sound else '?':>9}  {word('reason_code')[:20]:20}"
        f"  {word('caller')[:8]:8}  {word('task_id')}",
    )
    return [line] if completed else [line, Text(f"           {word('reason')}", "dim")]


def _below(report: ScoreReport) -> Table:
    """Stage times on the left, callers and those turned away on the right."""
    left = _seconds(report.overall)
    right = _callers(report)
    rows = max(len(left), len(right))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=27, no_wrap=True)
    grid.add_column(width=50, no_wrap=True)
    for row in range(rows):
        cells = (lines[row] if row < len(lines) else Text() for lines in (left, right))
        grid.add_row(*cells)
    return grid


def _seconds(tally: Tally) -> list[Text]:
    percentiles = tally.percentiles()
    names = sorted(percentiles, key=_stage_rank)
    lines = [_title(f"{'seconds':9}{'p50':>8}{'p95':>8}")]
    if len(names) > _MOST_STAGES:  # The last one is the total.
        names = [*names[: _MOST_STAGES - 1], names[-1]]
    for stage in names:
        p50, p95 = percentiles[stage]
        lines.append(Text(f" {stage[:8]:8} {p50:>8.3f}{p95:>8.3f}"))
    return [_on_one_line(line) for line in lines]


def _callers(report: ScoreReport) -> list[Text]:
    """The callers with the most answers, then why others were turned away."""
    lines = [_title(f"{'caller':12}{'answers':>9}{'on time':>9}{'fidelity':>10}")]
    busiest = sorted(report.callers.items(), key=lambda item: -item[1].answers)
    for caller, tally in busiest[:_MOST_CALLERS]:
        fidelity = tally.as_dict()["mean_fidelity"]
        shown = "" if fidelity is None else f"{fidelity:.3f}"
        lines.append(Text(f" {_short(caller):12}{tally.answers:>9,}{_share(tally):>9}{shown:>10}"))
    lines += _and_more(len(busiest) - _MOST_CALLERS)
    if report.refused:
        lines.append(_title("turned away"))
    for code, count in report.refused.most_common(_MOST_REFUSALS):
        because = report.refused_because.get(code, "")
        lines.append(Text(f" {count:>7,} {code}" + (f": {because}" if because else "")))
    lines += _and_more(len(report.refused) - _MOST_REFUSALS)
    return [_on_one_line(line) for line in lines]


def _and_more(count: int) -> list[Text]:
    return [Text(f" and {count} more", "dim")] if count > 0 else []


def _title(text: str) -> Text:
    return Text(f" {text}", "bold")


def _on_one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _short(name: str) -> str:
    return name if len(name) <= 11 else f"{name[:6]}..{name[-3:]}"


def _share(tally: Tally) -> str:
    owed = tally.answers - tally.rejected - tally.left
    return f"{tally.on_time_share:.1%}" if owed else "-"


def _counts(counts: Any) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts) or "none"


def _duration(seconds: float) -> str:
    """Seconds ago, in words."""
    if seconds < 0:
        return "in the future: the clocks differ"
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _stage_rank(stage: str) -> tuple[int, str]:
    order = _stage_order()
    return (order.index(stage) if stage in order else len(order), stage)


@cache
def _stage_order() -> tuple[str, ...]:
    """The stages in the order in which they run, then "total"."""
    # Imported only when there is something to show, so that --help and --json start at once.
    from generation.lift import BACK_ENDS
    from generation.stage import ENCODE, PICTURE_STAGES

    lifting = (stage for back_end in BACK_ENDS.values() for stage in back_end.stages)
    names = (stage.name for stage in (*PICTURE_STAGES, *lifting, ENCODE))
    return (*dict.fromkeys(names), "total")


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600.0:
        raise argparse.ArgumentTypeError(f"{printable(text)} is not between 0.1 and 3600")
    return seconds


def _height(console: Console) -> int:
    return console.size.height - 1 if console.is_terminal else HEIGHT


def _file(log: Path) -> Path:
    return log / FILE_NAME if os.path.isdir(log) else log


def _problem(log: Path) -> str:
    """Returns why there is nothing to read, in words; nothing if there is."""
    try:
        if log.is_dir() and not _file(log).exists():
            return "" if any(files_beside(_file(log))) else "the folder holds none"
        if not _file(log).is_file():
            return "it is no file" if log.exists() else "no such file or folder"
        _file(log).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _follower(log: Path) -> Follower:
    return Follower(_file(log), history=os.path.isdir(log))


def _follow(report: ScoreReport, log: Path, interval: float) -> None:
    """Draws the report until ctrl-C; a pipe gets it again whenever lines have come."""
    console = Console(highlight=False)
    drawn = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop") if drawn else None
    with closing(_follower(log)) as follower, live or nullcontext():
        new = True
        while True:
            for line in follower.look():
                report.read(line)
                new = True
            if live is not None:
                # The last line of the screen is the cursor's.
                live.update(render(report, log, height=console.size.height - 1), refresh=True)
            elif new:
                console.print(render(report, log), Text())
            new = False
            time.sleep(interval)


if __name__ == "__main__":
    raise SystemExit(main())
