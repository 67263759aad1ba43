"""How the miner is doing, read from its score log alone.

python -m scripts.monitor_scores logs/score*.jsonl
python -m scripts.monitor_scores --follow logs/score.jsonl
python -m scripts.monitor_scores --json logs/score.jsonl
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from miner.score.report import ScoreReport, Tally, read_events


def main(argv: list[str] | None = None) -> int:
    """Runs the tool; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m scripts.monitor_scores", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="score log, oldest first")
    parser.add_argument("--follow", action="store_true", help="keep reading the last LOG")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between looks (2)")
    options = parser.parse_args(argv)
    missing = [str(path) for path in options.logs if not path.is_file()]
    if missing:
        print(
            f"no score log at {', '.join(missing)}. The miner writes score.jsonl into --log.dir "
            "(logs by default); start it with: python -m neurons.miner --help",
            file=sys.stderr,
        )
        return 2
    report = ScoreReport()
    for path in options.logs:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for event in read_events(lines):
                report.add(event)
            end = lines.tell() if options.follow else 0
    if options.follow:
        return _follow(report, options.logs[-1], end, options.interval)
    if options.json:
        print(json.dumps(report.as_dict(), indent=2))
    else:
        Console().print(render(report))
    return 0


def render(report: ScoreReport) -> Group:
    """The report as tables for a terminal."""
    return Group(
        f"state: [bold]{report.state}[/bold]   answers: {report.overall.answers}   "
        f"on time: {report.overall.on_time_share:.1%}   rungs: {_rungs(report.overall)}",
        _callers(report),
        _seconds(report.overall),
        _recent(report),
    )


def _rungs(tally: Tally) -> str:
    return ", ".join(f"{count} {rung}" for rung, count in tally.rungs.most_common()) or "none"


def _callers(report: ScoreReport) -> Table:
    table = Table(title="outcomes")
    for column in ("caller", "answers", "on time", "outcomes by reason", "fidelity"):
        table.add_column(column, overflow="fold")
    rows: list[tuple[str, Tally]] = [("all", report.overall), *report.callers.items()]
    for caller, tally in rows:
        detail = tally.as_dict()
        table.add_row(
            caller,
            str(tally.answers),
            f"{tally.on_time_share:.1%}",
            ", ".join(f"{n} {code}" for code, n in detail["outcomes"].items()),
            "" if detail["mean_fidelity"] is None else f"{detail['mean_fidelity']:.3f}",
        )
    for code, count in report.refused.items():
        table.add_row("turned away", str(count), "", code, "")
    return table


def _seconds(tally: Tally) -> Table:
    table = Table(title="seconds per completed answer")
    for column in ("stage", "p50", "p95"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    percentiles = tally.percentiles()
    for stage in sorted(percentiles, key=_stage_rank):
        p50, p95 = percentiles[stage]
        table.add_row(stage, f"{p50:.3f}", f"{p95:.3f}")
    return table


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


def _recent(report: ScoreReport) -> Table:
    table = Table(title="last answers")
    for column in ("time (UTC)", "task", "outcome", "seconds", "reason"):
        table.add_column(column, overflow="fold")
    for event in report.recent:
        table.add_row(
            str(event.get("ts", ""))[:19],
            str(event.get("task_id", "")),
            str(event.get("outcome", "")),
            f"{event.get('total_s', 0.0):.2f}",
            str(event.get("reason", "")),
        )
    return table


def _follow(report: ScoreReport, path: Path, position: int, interval: float) -> int:
    with Live(render(report), console=Console(), auto_refresh=False) as live:
        try:
            for line in _growing_lines(path, position, interval):
                for event in read_events([line]):
                    report.add(event)
                live.update(render(report), refresh=True)
        except KeyboardInterrupt:
            return 0
    return 0


def _growing_lines(path: Path, position: int, interval: float) -> Iterator[str]:
    """Yields whole lines as they are written; starts over when the log was rotated."""
    rest = ""
    while True:
        if path.exists():
            if path.stat().st_size < position:
                position, rest = 0, ""
            with path.open(encoding="utf-8", errors="replace") as lines:
                lines.seek(position)
                *whole, rest = (rest + lines.read()).split("\n")
                position = lines.tell()
            yield from whole
        time.sleep(interval)


if __name__ == "__main__":
    raise SystemExit(main())
