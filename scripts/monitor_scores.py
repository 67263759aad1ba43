"""How the miner is doing, read from its score log alone.

python -m scripts.monitor_scores logs                     # with the files set aside
python -m scripts.monitor_scores logs/score.jsonl         # this alone, or several, oldest first
python -m scripts.monitor_scores --follow logs            # until ctrl-C
python -m scripts.monitor_scores --since 24h --html report.html logs
python -m scripts.monitor_scores --json logs/score.jsonl
python -m scripts.monitor_scores --alerts logs            # for cron, systemd, Nagios

Exit status: 0; 2 where there is no log to read. With --alerts: 0 nothing is wrong, 1 a warning,
2 something critical, 3 no log of a miner, as for Nagios plugins.
"""

import argparse
import difflib
import json
import os
import re
import sys
import time
from contextlib import closing, nullcontext
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import chain
from math import inf, isfinite
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from miner.interpreter import program_name
from miner.score.alerts import Alert, AlertSettings, alerts
from miner.score.fields import UNKNOWN
from miner.score.following import Follower, files_beside
from miner.score.report import ScoreReport
from miner.surroundings import settle_terminal
from protocol.files import replace_file
from protocol.text import printable
from scripts.monitor_terminal import HEIGHT, life, log_file, render, stage_rank

FINE, WARNING, CRITICAL, UNREADABLE = 0, 1, 2, 3
"""Exit status with --alerts."""

NO_LOG = 2
"""Exit status without it, where there is nothing to read."""

ALERT_PERIOD_S = 24 * 3600.0
"""Seconds that --alerts looks back without --since: longer than any threshold."""

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 7 * 86_400.0}


def main(argv: list[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    settle_terminal()
    parser = _parser()
    options = parser.parse_args(argv)
    if options.follow and (options.json or options.alerts or options.html):
        parser.error("--follow has no end: give it without --json, --alerts and --html")
    if options.json and options.alerts:
        parser.error("--json holds the alerts too: give one of --json and --alerts")
    for path in options.logs:
        if problem := _problem(path):
            words = (
                f"no score log at {printable(str(path))}: {problem}. The miner writes score.jsonl "
                "into --log.dir (logs by default); README.md shows how to start it"
            )
            print(words, file=sys.stdout if options.alerts else sys.stderr)
            return UNREADABLE if options.alerts else NO_LOG
    if options.html and any(_is_of(options.html, path) for path in options.logs):
        parser.error(f"--html {printable(str(options.html))} is a log that is read; name another")
    since = options.since
    if since is None:
        since = time.time() - ALERT_PERIOD_S if options.alerts else -inf
    report = ScoreReport(since)
    *earlier, last = options.logs
    for path in earlier if options.follow else options.logs:
        with closing(_follower(path, since)) as follower:
            for line in chain(follower.look(), follower.rest()):
                report.read(line)
    try:
        if options.follow:
            _follow(report, last, options)
            return FINE
        return _show(report, last, options)
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # Its reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(
            f"{printable(str(options.html))} cannot be written: {error.strerror}", file=sys.stderr
        )
        return UNREADABLE if options.alerts else NO_LOG
    return FINE


def _show(report: ScoreReport, log: Path, options: argparse.Namespace) -> int:
    """Prints the report once, in the form that was asked for; returns the exit status."""
    now = time.time()
    state, words = life(report, log, now)
    found = alerts(report, state=state, now=now, settings=options.settings)
    if options.html:
        from miner.score.html import render_html

        page = render_html(
            report,
            state=state,
            process=words,
            alerts=found,
            now=now,
            folder=log_file(log).parent,
            stage_rank=stage_rank,
        )
        replace_file(options.html, page.encode())
    if options.alerts and state == UNKNOWN and report.last_at is None:
        print(
            f"UNKNOWN: {printable(str(log))} has no line of a miner and {report.damaged:,} others; "
            "name the miner's --log.dir"
        )
        return UNREADABLE
    if options.alerts:
        print("\n".join(map(str, found)) or _fine(report, state))
        return _status(found)
    if options.json:
        print(
            json.dumps(
                {
                    **report.as_dict(),
                    "state": state,
                    "process": words,
                    "since_unix": report.since if isfinite(report.since) else None,
                    "alerts": [vars(alert) for alert in found],
                },
                indent=2,
            )
        )
    elif options.html:
        print(f"the report is in {printable(str(options.html))}")
    else:
        console = Console(highlight=False)
        height = _height(console)
        console.print(render(report, log, height=height, now=now, settings=options.settings))
    return FINE


def _fine(report: ScoreReport, state: str) -> str:
    tally = report.overall
    numbers = f"{tally.answers:,} answers, {tally.on_time:,} in time of {tally.owed:,} owed"
    return f"OK: {state}, {numbers}"


def _status(found: list[Alert]) -> int:
    if any(alert.level == "critical" for alert in found):
        return CRITICAL
    return WARNING if found else FINE


def _parser() -> argparse.ArgumentParser:
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
        "--since",
        type=_since,
        metavar="WHEN",
        help="count nothing before: 30m, 4h, 7d ago, or a time as 2026-01-31T12:00 (UTC, unless "
        "it says otherwise)",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots as well")
    parser.add_argument(
        "--alerts", action="store_true", help="what is wrong now, one line each, and as exit status"
    )
    parser.add_argument(
        "--threshold",
        action=_Threshold,
        dest="settings",
        default=AlertSettings(),
        metavar="NAME=VALUE",
        help="of an alert, as often as wanted: "
        + ", ".join(f"{field.name} ({field.default:g})" for field in fields(AlertSettings)),
    )
    parser.add_argument(
        "--interval", type=_interval, default=2.0, help="seconds between looks, 0.1 to 3600 (2)"
    )
    return parser


class _Threshold(argparse.Action):
    """Collects `--threshold NAME=VALUE`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        name, _, text = str(values).partition("=")
        names = [field.name for field in fields(AlertSettings)]
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(names)}"
            parser.error(f"--threshold: {printable(name)} is no threshold; {hint}")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0.0 <= value < inf:
            parser.error(
                f"--threshold {name}: {printable(text)} is no number of at least 0; write "
                f"{name}={getattr(namespace.settings, name):g}"
            )
        namespace.settings = replace(namespace.settings, **{name: value})


def _since(text: str) -> float:
    """Returns the time that is meant, in seconds since the epoch."""
    now = time.time()
    if (found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())) is not None:
        return now - float(found[1]) * _UNITS[found[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
        at = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{printable(text, 60)} is neither a duration as 30m, 4h or 7d nor a time as "
            "2026-01-31 or 2026-01-31T12:00"
        ) from None
    if at > now:
        raise argparse.ArgumentTypeError(
            f"{printable(text, 60)} is in the future; it is {datetime.now(UTC):%Y-%m-%dT%H:%M} UTC"
        )
    return at


def _interval(text: str) -> float:
    seconds = float(text)
    if not 0.1 <= seconds <= 3600.0:
        raise argparse.ArgumentTypeError(f"{printable(text)} is not between 0.1 and 3600")
    return seconds


def _height(console: Console) -> int:
    return console.size.height - 1 if console.is_terminal else HEIGHT


def _problem(log: Path) -> str:
    """Returns why there is nothing to read, in words; nothing if there is."""
    try:
        if log.is_dir() and not log_file(log).exists():
            return "" if any(files_beside(log_file(log))) else "the folder holds none"
        if not log_file(log).is_file():
            return "it is no file" if log.exists() else "no such file or folder"
        log_file(log).open("rb").close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _is_of(page: Path, log: Path) -> bool:
    """Tells whether a page would take the place of a log, or of one set aside from it."""
    file = log_file(log)
    place = os.path.realpath(page)
    return any(place == os.path.realpath(other) for other in (file, *files_beside(file)))


def _follower(log: Path, since: float) -> Follower:
    return Follower(log_file(log), history=os.path.isdir(log), since=since)


def _follow(report: ScoreReport, log: Path, options: argparse.Namespace) -> None:
    """Draws the report until ctrl-C; a pipe gets it again whenever lines have come."""
    console = Console(highlight=False)
    drawn = console.is_terminal and not console.is_dumb_terminal
    live = Live(console=console, auto_refresh=False, vertical_overflow="crop") if drawn else None
    with closing(_follower(log, report.since)) as follower, live or nullcontext():
        new = True
        while True:
            for line in follower.look():
                report.read(line)
                new = True
            if live is not None:
                # The last line of the screen is the cursor's.
                height = console.size.height - 1
                live.update(
                    render(report, log, height=height, settings=options.settings), refresh=True
                )
            elif new:
                console.print(render(report, log, settings=options.settings), Text())
            new = False
            time.sleep(options.interval)


if __name__ == "__main__":
    raise SystemExit(main())
