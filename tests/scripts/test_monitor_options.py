"""Periods, alerts and pages: what is given is understood or named; foreign text is never obeyed."""

import json
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from miner.file_lock import FOLDER_LOCK, FileLock
from miner.score.thumbnails import FOLDER
from scripts import monitor_scores
from tests.scripts.test_monitor_scores import MARKUP, answered


def write(folder: Path, *lines: dict[str, Any]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "score.jsonl").write_text(text)
    return folder


def recent(ago_s: float, **fields: Any) -> dict[str, Any]:
    return answered(unix=time.time() - ago_s, **fields)


def ready(ago_s: float) -> dict[str, Any]:
    return {"event": "state_changed", "state": "ready", "unix": time.time() - ago_s}


def answers(capsys: pytest.CaptureFixture[str], *arguments: str) -> int:
    assert monitor_scores.main(["--json", *arguments]) == 0
    return int(json.loads(capsys.readouterr().out)["overall"]["answers"])


@pytest.mark.parametrize(
    ("since", "count"),
    [("30s", 1), ("1.5m", 2), ("30m", 2), ("4h", 3), ("1d", 3), ("2w", 4), ("2020-01-01", 4)],
)
def test_a_period_counts_what_is_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], since: str, count: int
) -> None:
    ages = (8 * 86_400.0, 3 * 3600.0, 60.0, 1.0)
    write(tmp_path, *(recent(age) for age in ages))
    assert answers(capsys, "--since", since, str(tmp_path)) == count


def test_a_time_without_a_zone_is_utc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, answered(0), answered(59))  # 12:00:00 and 12:00:59.
    for since in ("2026-01-31T12:00:30", "2026-01-31 12:00:30Z", "2026-01-31T14:00:30+02:00"):
        assert answers(capsys, "--since", since, str(tmp_path)) == 1
    assert answers(capsys, "--since", "2026-01-31T12", str(tmp_path)) == 2


@pytest.mark.parametrize(
    ("since", "words"),
    [
        ("yesterday", "yesterday is neither a duration as 30m, 4h or 7d nor a time as 2026-01-31"),
        ("5", "5 is neither"),
        ("-5m", "-5m is neither"),
        ("4 hours", "4 hours is neither"),
        ("2026-13-01", "2026-13-01 is neither"),
        ("\x1b[2J", r"\x1b[2J is neither"),
        ("2999-01-01", "2999-01-01 is in the future; it is 20"),
    ],
)
def test_a_period_that_is_none_is_named_with_what_to_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], since: str, words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        monitor_scores.main([f"--since={since}", str(write(tmp_path))])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_the_state_is_known_though_it_was_told_before_the_period(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ready(7200.0), recent(60.0))
    assert monitor_scores.main(["--json", "--since", "1h", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "ready"


def test_without_alerts_the_status_is_0_and_the_line_says_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, ready(600.0), *(recent(n) for n in range(30)))
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "OK: ready, 30 answers, 30 in time of 30 owed\n"


def test_a_warning_ends_with_1_and_something_critical_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = [recent(n, total_s=26.0) for n in range(30)]
    write(tmp_path, ready(600.0), *slow)
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WARNING slow_answers: p95 of 30 answers")
    FileLock(tmp_path / FOLDER_LOCK, what="x", flag="--log.dir").release()
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 2
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("CRITICAL miner_gone: the process died; its last line is ")
    assert second.startswith("WARNING slow_answers")
    assert monitor_scores.main([str(tmp_path)]) == 0  # It only shows them.
    shown = capsys.readouterr().out
    assert "miner_gone" in shown
    assert "slow_answers" in shown


def test_no_log_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 3
    assert "--log.dir" in capsys.readouterr().out  # Where Nagios reads.


@pytest.mark.parametrize("text", ["", "not a score log\n"])
def test_a_file_that_says_nothing_of_a_miner_is_not_fine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "score.jsonl").write_text(text)
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 3
    assert capsys.readouterr().out.startswith("UNKNOWN: ")


def test_alerts_are_not_about_what_was_days_ago(tmp_path: Path) -> None:
    write(tmp_path, ready(3 * 86_400.0), *(recent(2 * 86_400.0, on_time=False) for _ in range(50)))
    assert monitor_scores.main(["--alerts", str(tmp_path)]) == 0


def test_a_threshold_is_given_by_its_name(tmp_path: Path) -> None:
    write(tmp_path, ready(600.0), *(recent(n, total_s=12.0) for n in range(30)))
    arguments = ["--alerts", "--threshold", "p95_s=10", str(tmp_path)]
    assert monitor_scores.main(arguments) == 1
    assert monitor_scores.main([*arguments, "--threshold", "least_answers=31"]) == 0


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        ("p95=10", "p95 is no threshold; did you mean p95_s?"),
        ("speed=10", "speed is no threshold; the names are window_s, "),
        ("p95_s", "p95_s:  is no number of at least 0; write p95_s=25"),
        ("p95_s=-1", "p95_s: -1 is no number of at least 0"),
        ("p95_s=nan", "p95_s: nan is no number"),
    ],
)
def test_a_threshold_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: str, words: str
) -> None:
    with pytest.raises(SystemExit):
        monitor_scores.main(["--alerts", "--threshold", threshold, str(write(tmp_path))])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--follow", "--json"], ["--follow", "--html=x"], ["--json", "--alerts"]]
)
def test_options_that_exclude_each_other_are_refused(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit):
        monitor_scores.main([*options, str(write(tmp_path))])


class Parts(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for _, value in attributes]

    def handle_data(self, data: str) -> None:
        self.text += data


def page_of(folder: Path, *lines: dict[str, Any]) -> Parts:
    write(folder, *lines)
    assert monitor_scores.main(["--html", str(folder / "page.html"), str(folder)]) == 0
    parts = Parts()
    parts.feed((folder / "page.html").read_text())
    return parts


HOSTILE = [*MARKUP, '"><script>alert(1)</script>', "{{ 7 * 7 }}", "javascript:alert(1)"]


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_of_strangers_are_text_on_the_page(tmp_path: Path, text: str) -> None:
    fields = ("task_id", "caller", "reason", "reason_code", "rung", "ts", "request_id", "outcome")
    lines = [
        *({**answered(n), field: text} for n, field in enumerate(fields)),
        answered(20, outcome="dropped", reason=text, reason_code=text, timings={text: 1.0}),
        {"event": "feedback", "caller": text, "fate": text, "task_id": text, "unix": 1769860801.0},
        {"event": "pulled", "caller": "5V", "result": "no_answer", "reason": text, "uid": 1},
        {"event": "refused", "reason_code": text, "reason": text, "count": 1},
        {"event": "miner_started", "version": text, "transports": [text], "hotkey": text, "uid": 1},
        {"event": "engine_lost", "engine": text, "reason": text},
        {"event": "state_changed", "state": text},
    ]
    parts = page_of(tmp_path, *lines)
    plain = page_of(tmp_path, *json.loads(json.dumps(lines).replace(json.dumps(text), '"plain"')))
    assert parts.tags == plain.tags
    assert "script" not in parts.tags
    assert not set(parts.text) & {"\x1b", "\x07", "\u202e", "\ud800"}
    if text.isascii() and text.isprintable():
        assert text in parts.text


def test_the_pictures_of_the_last_assets_stand_on_the_page_and_no_other_file_does(
    tmp_path: Path,
) -> None:
    (tmp_path / FOLDER).mkdir()
    Image.new("RGBA", (8, 8), "red").save(tmp_path / FOLDER / "00ff.webp")
    (tmp_path / FOLDER / "0bad.webp").write_bytes(b"no picture")
    (tmp_path / "secret.webp").write_bytes((tmp_path / FOLDER / "00ff.webp").read_bytes())
    names = ("00ff", "0bad", "../secret", "0none")
    parts = page_of(tmp_path, *(answered(n, request_id=name) for n, name in enumerate(names)))
    assert parts.tags.count("img") == 1
    assert sum(value.startswith("data:image/webp;base64,UklGR") for value in parts.values) == 1
    assert all(f"task-{n}" in parts.text for n in range(4))


def test_an_empty_log_is_a_page_too(tmp_path: Path) -> None:
    parts = page_of(tmp_path)
    assert "No answers in this period." in parts.text
    assert "No alerts." in parts.text


def test_a_page_that_cannot_be_written_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none" / "page.html"
    assert monitor_scores.main(["--html", str(path), str(write(tmp_path))]) == 2
    assert f"{path} cannot be written: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["score.jsonl", "score.jsonl.1", "link.html"])
def test_a_page_never_takes_the_place_of_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    log = write(tmp_path, recent(1.0)) / "score.jsonl"
    (tmp_path / "score.jsonl.1").write_bytes(log.read_bytes())
    (tmp_path / "link.html").symlink_to(log)
    for given in (tmp_path, log):
        with pytest.raises(SystemExit) as refusal:
            monitor_scores.main(["--html", str(tmp_path / name), str(given)])
        assert refusal.value.code == 2
        assert f"{name} is a log that is read; name another" in capsys.readouterr().err
    assert json.loads((tmp_path / name).read_text())["event"] == "answered"


@pytest.mark.parametrize("others", [[], [{"outcome": "completed"}]])
def test_what_another_version_calls_by_another_name_is_drawn_as_others(
    tmp_path: Path, others: list[dict[str, Any]]
) -> None:
    lines = [recent(n, **fields) for n, fields in enumerate([{"outcome": "postponed"}, *others])]
    without = recent(9)
    del without["outcome"]
    assert "others 2" in " ".join(page_of(tmp_path, *lines, without).text.split())


def test_in_a_terminal_every_alert_ends_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {"event": "miner_stopped", "unix": time.time(), "exit_code": 1, "reason": "x"}
    monitor_scores.main([str(write(tmp_path, stopped))])
    lines = capsys.readouterr().out.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("CRITICAL miner_stopped"))
    words = " ".join(line.strip() for line in lines[first : first + 2])
    assert words.endswith("; start it again; read the last lines of miner.log")
    assert max(map(len, lines)) <= 80
