"""A report as one HTML page that needs nothing else: no network, no script, pictures inside."""

import base64
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from math import isinf
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from miner.score.alerts import Alert
from miner.score.plots import HEIGHT, WIDTH, plots
from miner.score.report import ScoreReport, plain
from miner.score.scoring import bins_of, in_short
from miner.score.thumbnails import FOLDER, SUFFIX
from miner.score.words import words_in_short

MOST_ASSETS = 24
"""Thumbnails on the page."""

MOST_ANSWERS = 15

_LARGEST_PICTURE = 64 * 1024
_REQUEST_ID = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class ShownAsset:
    """One of the last completed answers, as the page shows it.

    Attributes:
        picture: A data URI; empty if there is no thumbnail.
        at: When it was answered.
        seconds: That it took.
        on_time: Whether it kept its budget.
        task_id: The caller's.
        fate: What the validator made of it; empty where none said.
        score: Its fidelity, where it was accepted.
        own: The own score and how it came about; empty without one.
        words: That the networks knew and ignored; empty where they are too many to list.
    """

    picture: str
    at: str
    seconds: str
    on_time: bool
    task_id: str
    fate: str
    score: float | None
    own: str
    words: str


def render_html(
    report: ScoreReport,
    *,
    state: str,
    process: str,
    alerts: Sequence[Alert],
    now: float,
    folder: Path | None = None,
    stage_rank: Callable[[str], Any] = str,
) -> str:
    """Returns the page.

    Args:
        report: What it shows.
        state: The miner's state.
        process: What is known of its process, in words.
        alerts: What is wrong now.
        now: Seconds since the epoch.
        folder: The log's, with the thumbnails in it.
        stage_rank: Sorts stages by their names.
    """
    percentiles = report.overall.percentiles()
    validators = sorted(report.validators.items(), key=lambda item: -item[1].tasks)
    callers = sorted(report.callers.items(), key=lambda item: -item[1].answers)
    return _template().render(
        report=report,
        state=state,
        process=process,
        alerts=alerts,
        now=now,
        since=None if isinf(report.since) else report.since,
        plots=plots(report),
        width=WIDTH,
        height=HEIGHT,
        stages=[(name, *percentiles[name]) for name in sorted(percentiles, key=stage_rank)],
        validators=validators,
        callers=[item for item in callers if item[0] not in report.validators][:20],
        assets=list(_assets(report, folder)),
        answers=[plain(event) for event in reversed(report.recent)][:MOST_ANSWERS],
        earned=report.earnings.last,
        scoring=report.scoring,
        calibrations=[
            (scorer, report.scoring.calibration(scorer), pairs[-1].threshold, bins_of(pairs))
            for scorer, pairs in report.scoring.pairs.items()
        ],
    )


def _assets(report: ScoreReport, folder: Path | None) -> Iterator[ShownAsset]:
    """Yields the last assets, the newest first."""
    for event in list(reversed(report.completed))[:MOST_ASSETS]:
        shown = plain(event)
        task_id, total = str(shown.get("task_id", "")), shown.get("total_s")
        fate, score = report.scores.get(task_id, ("", None))
        yield ShownAsset(
            _picture(folder, str(shown.get("request_id", ""))),
            at=str(shown.get("ts", ""))[11:19],
            seconds=f"{total:.2f} s" if isinstance(total, int | float) else "",
            on_time=shown.get("on_time") is True,
            task_id=task_id,
            fate=fate,
            score=score if fate == "accepted" else None,
            own=in_short(shown),
            words=words_in_short(shown),
        )


def _picture(folder: Path | None, request_id: str) -> str:
    """Returns a thumbnail as a data URI; nothing if there is none."""
    if folder is None or not _REQUEST_ID.fullmatch(request_id):
        return ""
    with suppress(OSError), open(folder / FOLDER / f"{request_id}{SUFFIX}", "rb") as file:
        data = file.read(_LARGEST_PICTURE + 1)
        if len(data) <= _LARGEST_PICTURE and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return f"data:image/webp;base64,{base64.b64encode(data).decode()}"
    return ""


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("miner.score", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "time": _time,
        "number": _number,
        "counts": _counts,
        "in_short": in_short,
        "words_in_short": words_in_short,
    }
    return environment.get_template("report.html.j2")


def _time(at: float | None) -> str:
    """Seconds since the epoch as a time in UTC."""
    return "-" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _counts(items: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in items) or "none"
