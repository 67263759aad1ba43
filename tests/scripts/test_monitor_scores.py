"""The monitor reads the examples that the log's documentation gives."""

import base64
import gzip
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from generation.lift import BACK_ENDS
from miner.file_lock import FOLDER_LOCK, FileLock
from miner.score.report import ScoreReport
from protocol.errors import TaskError
from protocol.tasks import parse_task
from scripts import monitor_scores
from scripts.monitor_terminal import life, render, stage_rank

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "golden" / "cases"
MARKUP = ["[/x]", "[bold]", "[red", "\x1b[2J\x1b]0;title\x07", "\u202ebad", "{0}", "<b>", "\ud800"]


@pytest.fixture
def documented_log(tmp_path: Path) -> Path:
    document = (ROOT / "docs" / "score-log.md").read_text()
    path = tmp_path / "score.jsonl"
    path.write_text("\n".join(line for line in document.splitlines() if line.startswith("{")))
    return path


def test_documented_examples_are_understood(
    documented_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main(["--json", str(documented_log)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["state"] == "ready"
    assert report["overall"]["outcomes"] == {"completed/ok": 1, "dropped/predicted_late": 1}
    assert report["overall"]["seconds"]["total"] == {"p50": 4.0, "p95": 4.0}


def test_tables_name_outcomes_and_stages(
    documented_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main([str(documented_log)]) == 0
    shown = capsys.readouterr().out
    assert "predicted_late" in shown
    assert "rungs: 1 full" in shown
    order = [
        shown.index(f" {stage} ") for stage in ("prompt", "denoise", "cutout", "lift", "total")
    ]
    assert order == sorted(order)


def test_stages_are_shown_in_the_order_in_which_they_run() -> None:
    last_first = ["total", "of_another_version", "encode", "lift", "cutout", "denoise", "prompt"]
    in_order = sorted(last_first, key=stage_rank)
    assert in_order[:5] == ["prompt", "denoise", "cutout", "lift", "encode"]
    assert in_order[5:] == ["total", "of_another_version"]


@pytest.mark.parametrize("back_end", BACK_ENDS)
def test_the_stages_of_every_back_end_are_shown_in_its_order(back_end: str) -> None:
    own = [stage.name for stage in BACK_ENDS[back_end].stages]
    names = [
        "prompt",
        "denoise",
        "decode",
        "cutout",
        "rate",
        *own,
        "refine",
        "encode",
        "score",
        "total",
    ]
    last_first = list(names)
    last_first.reverse()
    assert sorted(last_first, key=stage_rank) == names


def test_of_many_stages_the_longest_are_shown_and_the_total(
    documented_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = documented_log.read_text().splitlines()
    answered = next(json.loads(line) for line in lines if '"answered"' in line)
    timings = {"prompt": 0.01, "denoise": 0.3, "decode": 0.02, "cutout": 0.03, "prepare": 0.04}
    timings |= {"features": 0.2, "flow": 2.1, "gaussians": 0.25, "splats": 0.05, "encode": 0.06}
    answered |= {"timings": timings | {"score": 0.15}, "total_s": 3.2}
    documented_log.write_text(json.dumps(answered) + "\n")
    assert monitor_scores.main([str(documented_log)]) == 0
    shown = capsys.readouterr().out
    names = ("denoise", "prepare", "features", "flow", "gaussians", "splats", "score", "total")
    places = [shown.index(f" {name} ") for name in names]
    assert places == sorted(places)
    assert " prompt " not in shown


def test_a_missing_log_names_the_flag_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main([str(tmp_path / "none.jsonl")]) == 2
    assert "--log.dir" in capsys.readouterr().err


def test_a_log_that_may_not_be_read_says_so(
    documented_log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.stat", denied)  # The tests may run as root.
    for log in (documented_log, documented_log.parent):
        assert monitor_scores.main([str(log)]) == 2
        assert f"no score log at {log}: Permission denied" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, scripts.monitor_scores; "
        "print([m for m in ('torch', 'bittensor', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def answered(n: int = 0, **fields: Any) -> dict[str, Any]:
    clock = f"2026-01-31T12:{n // 60:02}:{n % 60:02}.000000+00:00"
    return {
        **{"ts": clock, "unix": 1769860800.0 + n, "event": "answered", "task_id": f"task-{n}"},
        **{"caller": "5F", "outcome": "completed", "reason_code": "ok", "reason": "done"},
        **{"rung": "full", "timings": {"lift": 1.0}, "total_s": 2.0, "budget_s": 29.0},
        **{"on_time": True, **fields},
    }


def shown(
    log: Path, capsys: pytest.CaptureFixture[str], *lines: "dict[str, Any] | str | bytes"
) -> str:
    """What the monitor prints of a log with these lines."""
    with log.open("wb") as file:
        for line in lines:
            text = json.dumps(line) if isinstance(line, dict) else line
            file.write((text.encode() if isinstance(text, str) else text) + b"\n")
    assert monitor_scores.main([str(log)]) == 0
    return capsys.readouterr().out


def report_of(*events: dict[str, Any]) -> ScoreReport:
    report = ScoreReport()
    for event in events:
        report.add(event)
    return report


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "score.jsonl"


def test_the_reason_of_a_refused_picture_is_text_whatever_its_bytes_say(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = (CASES / "webp_chunk_closing_tag.webp").read_bytes()
    prompt = base64.b64encode(picture).decode()
    with pytest.raises(TaskError) as refused:
        parse_task(task_id="t", kind="image", prompt=prompt)
    rejected = answered(outcome="rejected", reason_code="bad_task", reason=str(refused.value))
    assert "[/x]" in shown(log, capsys, rejected)


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize(
    "field", ["ts", "task_id", "caller", "outcome", "reason_code", "reason", "rung", "timings"]
)
def test_a_text_from_outside_is_never_markup_and_never_moves_the_cursor(
    log: Path, capsys: pytest.CaptureFixture[str], field: str, text: str
) -> None:
    value: object = {text: 1.0} if field == "timings" else text
    line = {**answered(outcome="dropped"), field: value}
    refused = {"event": "refused", "reason_code": text, "reason": text, "count": 1}
    state = {"event": "state_changed", "state": text}
    lost = {"event": "engine_lost", "engine": text, "reason": text}
    output = shown(log, capsys, line, answered(1, **{field: value}), refused, state, lost)
    assert not set(output) & {"\x1b", "\x07", "\u202e", "\ud800"}
    assert "damaged" not in output
    if text.isascii() and text.isprintable():
        assert text in output


def test_damaged_and_odd_lines_are_counted_and_shown_and_the_others_count(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shown(
        log,
        capsys,
        answered(0),
        '{"event": "answ',
        b"\x00\xff\xfe junk",
        "[1, 2]",
        "[" * 100_000,
        b"\0" * 4096,
        answered(1, total_s="abc"),
        answered(2, timings=[1], on_time="yes"),
        b"\0" * 512 + json.dumps(answered(3)).encode(),
    )
    assert "answers: 4 " in output
    assert "6 damaged lines, 2 odd lines" in output


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_of_another_encoding_is_damaged_lines(
    log: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    log.write_bytes("".join(json.dumps(answered(n)) + "\n" for n in range(5)).encode(encoding))
    assert monitor_scores.main([str(log)]) == 0
    assert " damaged lines" in capsys.readouterr().out


def test_a_compressed_log_is_read(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_bytes(gzip.compress(json.dumps(answered()).encode() + b"\n"))
    assert monitor_scores.main([str(log)]) == 0
    assert "answers: 1 " in capsys.readouterr().out


def test_json_is_json_whatever_the_log_holds(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = [deep]
    lines = [answered(total_s=float("nan"), extra=deep), answered(unix=1e400, caller=None), "junk"]
    log.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    assert monitor_scores.main(["--json", str(log)]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    report = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert (report["damaged_lines"], report["odd_lines"]) == (1, 2)


def test_a_busy_log_fits_80_by_24_with_the_newest_answers_first(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [*("prompt", "denoise", "decode", "cutout", "lift", "splats", "encode"), *"abcdef"]
    answers = [
        answered(n, caller=f"5{n % 10}{'x' * 46}", timings=dict.fromkeys(stages, 1.0))
        for n in range(100)
    ]
    dropped = [answered(n, outcome="dropped", reason="why " * 60) for n in range(100, 102)]
    refused = [
        {"event": "refused", "reason_code": f"code_{n}", "reason": "long " * 50} for n in range(9)
    ]
    lost = {"event": "log_lost", "count": 3, "reason": "No space left on device"}
    lines = shown(log, capsys, *answers, *dropped, *refused, lost, "junk").splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    times = [line.split()[0] for line in lines if line.startswith(" 12:")]
    assert len(times) >= 2
    assert times == sorted(times, reverse=True)
    assert times[0] == "12:01:41"
    text = "\n".join(lines)
    assert "and 8 more" in text  # Callers.
    assert "and 6 more" in text  # Codes.
    assert " total " in text
    assert "3 lost lines" in text
    assert "No space left" in text


def test_a_tall_terminal_shows_more_answers() -> None:
    report = report_of(*(answered(n) for n in range(60)))
    short, tall = (len(render(report, height=h).renderables) for h in (24, 50))
    assert tall == short + 26


def test_mistakes_of_callers_do_not_lower_the_share_of_answers_on_time(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = shown(
        log,
        capsys,
        answered(0),
        answered(1, outcome="rejected", reason_code="bad_task", on_time=False),
        answered(2, outcome="dropped", reason_code="caller_left", on_time=False),
    )
    assert "on time: 100.0%   rejected: 1   callers left: 1" in output


def test_a_folder_is_read_with_the_files_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(answered(n)) + "\n" for n in range(6)]
    (tmp_path / "score.jsonl").write_text(lines[5])
    (tmp_path / "score.2026-01-31_12-00-00_000000.jsonl").write_text("".join(lines[2:5]))
    (tmp_path / "score.2026-01-30_12-00-00_000000.jsonl.gz").write_bytes(
        gzip.compress("".join(lines[:2]).encode())
    )
    for given, count in ((tmp_path, 6), (tmp_path / "score.jsonl", 1)):
        assert monitor_scores.main(["--json", str(given)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["overall"]["answers"] == count
        assert report["recent"][-1]["task_id"] == "task-5"


def test_a_folder_without_a_log_names_the_flag_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main([str(tmp_path)]) == 2
    assert "--log.dir" in capsys.readouterr().err


@pytest.mark.parametrize("interval", ["0", "-1", "nan", "inf", "soon"])
def test_an_interval_that_is_none_is_refused(
    documented_log: Path, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    with pytest.raises(SystemExit):
        monitor_scores.main(["--follow", "--interval", interval, str(documented_log)])
    assert "--interval" in capsys.readouterr().err


READY = {"event": "state_changed", "state": "ready", "unix": 1000.0}
STOPPED = {"event": "miner_stopped", "unix": 1000.0}


def test_a_miner_that_holds_its_lock_lives(log: Path) -> None:
    lock = FileLock(log.with_name(FOLDER_LOCK), what="x", flag="--log.dir")
    state, words = life(report_of(READY), log, now=1003.0)
    assert state == "ready"
    assert f"process {os.getpid()}, last line 00:16:40 UTC (3 s ago)" in words
    assert life(report_of(STOPPED), log)[0] == "starting"  # The next one.
    assert life(report_of(), log)[0] == "starting"
    # Started again after a rotation, the file does not hold the state.
    assert life(report_of(answered()), log)[0] == "unknown"
    lock.release()


@pytest.mark.parametrize("state", ["ready", "warming_up", "draining"])
def test_a_miner_that_was_killed_is_gone_whatever_its_log_says(log: Path, state: str) -> None:
    FileLock(log.with_name(FOLDER_LOCK), what="x", flag="--log.dir").release()
    found, words = life(report_of({**READY, "state": state}), log, now=1003.0)
    assert found == "gone"
    assert f"process {os.getpid()} died (was {state})" in words
    assert life(report_of(STOPPED), log)[0] == "stopped"


def test_of_a_miner_on_another_machine_its_silence_is_shown(log: Path) -> None:
    lock = {"pid": 7, "host": f"not-{socket.gethostname()}", "since": "2026-01-01"}
    log.with_name(FOLDER_LOCK).write_text(json.dumps(lock))
    state, words = life(report_of(READY), log, now=1000.0 + 3 * 3600)
    assert state == "ready"
    assert "no line since 00:16:40 UTC (3 h ago)" in words


def test_a_clock_that_is_behind_is_said(log: Path) -> None:
    assert "the clocks differ" in life(report_of(READY), log, now=500.0)[1]


def test_the_live_monitor_sees_rotations_and_the_end_of_the_process(tmp_path: Path) -> None:
    """On a terminal, as an operator runs it."""
    log = tmp_path / "score.jsonl"
    lock = FileLock(tmp_path / FOLDER_LOCK, what="x", flag="--log.dir")
    now = time.time()
    log.write_text(json.dumps({**READY, "unix": now}) + "\n")
    command = [sys.executable, "-m", "scripts.monitor_scores", "--follow", "--interval", "0.1"]
    environ = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    leader, follower = os.openpty()
    with subprocess.Popen(
        [*command, str(tmp_path)], cwd=ROOT, stdout=follower, stderr=follower, env=environ
    ) as process:
        os.close(follower)
        try:
            _read_until(leader, "ready")
            with log.open("a") as file:
                file.write(json.dumps(answered(1, task_id="before")) + "\n")
            log.rename(tmp_path / "score.2026-01-31_12-00-00_000000.jsonl")
            log.write_text(json.dumps(answered(2, task_id="after", caller="[/x]")) + "\n")
            screen = _read_until(leader, "answers: 2")
            screen = screen[screen.rindex("newest answers") :] + _read_until(leader, "before")
            assert screen.index("after") < screen.index("before")
            lock.release()
            _read_until(leader, "gone")
        finally:
            process.kill()
            os.close(leader)


def test_in_a_pipe_the_report_is_printed_again_when_lines_come(log: Path) -> None:
    log.write_text(json.dumps(answered(1)) + "\n")
    command = [sys.executable, "-m", "scripts.monitor_scores", "--follow", "--interval", "0.1"]
    with subprocess.Popen([*command, str(log)], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        handle = process.stdout.fileno()
        try:
            _read_until(handle, "answers: 1 ")
            with log.open("a") as file:
                file.write(json.dumps(answered(2)) + "\n")
            assert "\x1b" not in _read_until(handle, "answers: 2 ")
        finally:
            process.kill()


def _read_until(handle: int, words: str) -> str:
    """What a terminal shows until these words come; the limit of the test ends it otherwise."""
    text = ""
    while words not in text:
        text += os.read(handle, 65536).decode(errors="replace")
    return text
