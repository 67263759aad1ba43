"""Whatever a log holds, it is read, counted and shown, in little time and memory."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from miner.score.alerts import alerts
from miner.score.following import Follower
from miner.score.html import render_html
from miner.score.report import ScoreReport
from scripts.benchmarks.fuzz.files import mutate
from scripts.monitor_terminal import render

LIMIT_S = 1.0
SEEDS = 500
SOUND = "\n".join(
    line
    for line in (Path(__file__).parents[3] / "docs" / "score-log.md").read_text().splitlines()
    if line.startswith("{")
)
EVENTS = [json.loads(line) for line in SOUND.splitlines()] + [
    {"event": "feedback", "caller": "5F", "fate": "accepted", "task_fidelity_score": 0.8},
    {"event": "feedback", "caller": "5F", "fate": "refused", "threshold": 0.6, "predicted": 0.62}
    | {"scorer": "embedded", "gated": False, "gate_probe": True, "task_fidelity_score": 0.0},
    {"event": "answered", "outcome": "completed", "reason_code": "below_threshold", "score": 0.5}
    | {"scorer": "embedded", "first_score": 0.4, "candidates": 9, "candidates_s": 3.0}
    | {"gated": True, "gate_limit": 0.6},
    {"event": "refused", "reason_code": "no_permit", "reason": "no", "count": 3},
    {"event": "miner_started", "pid": 7},
    {"event": "engine_lost", "engine": "gpu-0", "reason": "hangs"},
    {"event": "log_lost", "count": 3, "reason": "full"},
    {"event": "miner_stopped", "exit_code": 0},
]

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -(10**400), 1e308, "[/x]", "\x1b[2J", "\ud800", "x" * 10_000])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def shown(report: ScoreReport) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report))
    console.file.close()
    return console.export_text()


def fits(report: ScoreReport) -> bool:
    lines = shown(report).splitlines()
    json.dumps(report.as_dict(), allow_nan=False, indent=2)
    return len(lines) <= 24 and all(len(line) <= 80 for line in lines)


@settings(max_examples=200)
@given(st.data())
def test_a_field_may_hold_anything(data: st.DataObject) -> None:
    report = ScoreReport()
    event: dict[str, Any] = dict(data.draw(st.sampled_from(EVENTS)))
    for name in data.draw(st.sets(st.sampled_from(sorted(event)), max_size=3)):
        event[name] = data.draw(values)
    for name in data.draw(st.sets(st.sampled_from(sorted(event)), max_size=2)):
        del event[name]
    try:
        line = json.dumps(event)
    except ValueError:  # The decimal digits of an integer have a limit.
        return
    report.read(line)
    report.read(json.dumps(EVENTS[2]))
    assert report.overall.answers >= 1
    assert report.damaged <= 1
    assert fits(report)
    assert "</html>" in render_html(
        report, state="ready", process="", alerts=alerts(report, state="ready", now=0.0), now=0.0
    )


@pytest.mark.parametrize("number", [10**400, -(10**400)], ids=["large", "negative"])
def test_any_number_may_be_larger_than_a_float(number: int) -> None:
    for event in EVENTS:
        for name, value in event.items():
            if type(value) in (int, float):
                report = ScoreReport()
                report.read(json.dumps(event | {name: number}))
                assert fits(report)
                assert "</html>" in render_html(
                    report, state="ready", process="", alerts=[], now=0.0
                )


@settings(max_examples=SEEDS)
@given(st.lists(st.binary() | st.text().map(lambda text: text.encode(errors="replace"))))
def test_a_file_may_hold_anything(tmp_path_factory: Any, parts: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    path.write_bytes(b"\n".join(parts))
    read(path)


def read(path: Path) -> ScoreReport:
    report, follower = ScoreReport(), Follower(path)
    for lines in (follower.look(), follower.rest()):
        for line in lines:
            report.read(line)
    follower.close()
    assert fits(report)
    return report


def test_a_damaged_file_says_what_its_sound_lines_say(tmp_path: Path) -> None:
    path = tmp_path / "score.jsonl"
    damaged = 0
    for seed in range(SEEDS):
        path.write_bytes(mutate(SOUND.encode(), seed))
        started = time.process_time()
        report = read(path)
        assert time.process_time() - started < LIMIT_S, seed
        damaged += bool(report.damaged or report.odd)
    assert damaged > SEEDS / 2, "the mutations do not damage the file"


def test_strangers_cannot_fill_the_memory_with_names() -> None:
    report = ScoreReport()
    event = {"event": "answered", "outcome": "completed"}
    for n in range(5000):
        report.add({**event, "caller": f"5{n}", "rung": f"r{n}", "timings": {f"s{n}": 1.0}})
        report.add({"event": "refused", "reason_code": f"c{n}"})
    assert report.overall.answers == 5000
    assert report.refused.total() == 5000
    names = (report.callers, report.refused, report.overall.rungs, report.overall.stages)
    assert all(len(set(known)) <= 1002 for known in names)
    assert len(report.refused_because) <= 1002
    assert report.callers["others"].answers == 4000


@pytest.mark.parametrize("piece", [b"x", b"\0", b'{"event": "answered"} ', b"[", b'{"a":'])
def test_a_line_of_100_mb_is_one_damaged_line(tmp_path: Path, piece: bytes) -> None:
    path = tmp_path / "score.jsonl"
    block = piece * (2**20 // len(piece))
    with path.open("wb") as file:
        for _ in range(100):
            file.write(block)
        file.write(b"\n" + json.dumps(EVENTS[2]).encode() + b"\n")
    report = read(path)
    assert (report.damaged, report.overall.answers) == (1, 1)
