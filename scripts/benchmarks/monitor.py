"""Reading a score log: a generated one, plain and packed, to a report and to a page."""

import gzip
import json
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from miner.score import FILE_NAME
from miner.score.following import Follower
from miner.score.html import render_html
from miner.score.report import ScoreReport
from scripts.benchmarks.figures import write_figures

_VALIDATORS = 12
_STAGES = ("prompt", "denoise", "decode", "cutout", "lift", "splats", "encode")
_BEGIN = 1_750_000_000.0


def run(*, lines: int = 1_000_000, out: Path | None = None) -> dict[str, Any]:
    """Prints CPU seconds, and returns the figures.

    Args:
        lines: Of the log, in equal parts `pulled`, `admitted`, `answered` and `feedback`.
        out: File for the figures as JSON.

    Raises:
        SetupError: `out` cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / FILE_NAME
        with log.open("w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in _lines(lines))
        packed = log.with_name(f"{FILE_NAME}.gz")
        with log.open("rb") as plain, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(plain, target)
        figures = {
            "lines": lines,
            "megabytes": log.stat().st_size / 1e6,
            "packed_megabytes": packed.stat().st_size / 1e6,
            "plain_s": _seconds(log, page=False),
            "page_s": _seconds(log, page=True),
            "packed_s": _seconds(packed, page=False),
        }
    print(
        "{lines:,} lines, {megabytes:.0f} MB ({packed_megabytes:.0f} MB packed); CPU seconds: "
        "report {plain_s:.1f}, page {page_s:.1f}, report of the packed log {packed_s:.1f}".format(
            **figures
        )
    )
    write_figures(out, figures)
    return figures


def _seconds(log: Path, *, page: bool) -> float:
    begun = time.process_time()
    report = ScoreReport()
    with closing(Follower(log)) as follower:
        for line in chain(follower.look(), follower.rest()):
            report.read(line)
    if page:
        now = report.last_at or 0.0
        render_html(report, state="ready", process="", alerts=(), now=now)
    else:
        report.as_dict()
    return time.process_time() - begun


def _lines(count: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(1)
    letters = "abcdefghijkmnopqrstuvwxyz123456789"
    hotkeys = [f"5{''.join(chance.choices(letters, k=47))}" for _ in range(_VALIDATORS)]
    at, written = _BEGIN, 0
    while True:
        uid = chance.randrange(_VALIDATORS)
        task = {"task_id": f"{chance.getrandbits(128):032x}", "caller": hotkeys[uid], "uid": uid}
        for event in _turn(chance, task):
            if written == count:
                return
            at, written = at + chance.uniform(0.0, 2.0), written + 1
            moment = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
            yield {"ts": moment, "unix": round(at, 6), **event}


def _turn(chance: random.Random, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines of one pulled task."""
    request = {"request_id": f"{chance.getrandbits(64):016x}", **task, "transport": "pull"}
    common = {**request, "kind": "text", "rung": "full", "predicted_s": 4.9, "budget_s": 29.3}
    timings = {stage: round(chance.uniform(0.05, 2.0), 6) for stage in _STAGES}
    done = chance.random() < 0.93
    yield {"event": "pulled", **task, "result": "task", "kind": "text", "violations": 0}
    yield {"event": "admitted", **common, "pending": 1}
    yield {
        **{"event": "answered", **common, "outcome": "completed" if done else "dropped"},
        **{"reason_code": "ok" if done else "predicted_late", "reason": "4.00 s of 29.30 s"},
        **{"engine": "cuda:0", "timings": timings if done else {}, "queue_s": 0.05},
        **{"total_s": round(sum(timings.values()), 6) if done else 0.0, "on_time": done},
        **({"gaussians": 98_231, "bytes": 1_571_040, "valid": True} if done else {}),
    }
    yield {
        **{"event": "feedback", **task, "fate": "accepted" if done else "skipped"},
        **{"threshold": 0.6, "turnaround_s": 7.4, "ask_again_s": 294.0},
        **{"validation_failed": False, "average_fidelity_score": 0.81},
        **({"task_fidelity_score": round(chance.uniform(0.6, 1.0), 4)} if done else {}),
        **{"generations_within_the_window": 40, "current_duel_rating": 1500.0},
        **{"current_miner_reward": 60_000.0},
    }
