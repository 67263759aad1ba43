"""A simulated day: what the monitor reports is what anybody can count in the log."""

import gzip
import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from miner.score.alerts import AlertSettings, alerts
from miner.score.following import Follower
from miner.score.report import ScoreReport
from scripts import monitor_scores
from tests.support.browsing import CHROMIUM, WatchedPage, chromium
from tests.support.simulated_day import BEGIN, DAY_S, record_day

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
ONE_LINERS = re.findall(r"^zcat .*$", PAGE, re.MULTILINE)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the log; of its files, one is packed as the page says."""
    folder = tmp_path_factory.mktemp("day")
    logs = folder / "logs"
    with pytest.MonkeyPatch.context() as patch:
        record_day(logs, patch)
    old = sorted(logs.glob("score.*.jsonl"))[0]
    subprocess.run(["touch", "-d", "2 hours ago", old], check=True)
    (pack,) = re.findall(r"^find logs .*$", PAGE, re.MULTILINE)
    subprocess.run(["bash", "-c", pack], cwd=folder, check=True)
    assert old.with_name(f"{old.name}.gz").is_file()
    return logs


@pytest.fixture(scope="module")
def events(day: Path) -> list[dict[str, Any]]:
    """Every line, read without any code of the monitor."""
    (packed,) = day.glob("score.*.jsonl.gz")
    texts = [gzip.decompress(packed.read_bytes()).decode()]
    texts += [
        path.read_text() for path in (*sorted(day.glob("score.*.jsonl")), day / "score.jsonl")
    ]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def report_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert monitor_scores.main(["--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_day_holds_what_the_monitor_has_to_tell_apart(events: list[dict[str, Any]]) -> None:
    fates = Counter(event["fate"] for event in events if event["event"] == "feedback")
    pulls = Counter(event["result"] for event in events if event["event"] == "pulled")
    codes = Counter(event["reason_code"] for event in events if event["event"] == "answered")
    assert min(fates[fate] for fate in ("accepted", "refused", "skipped", "failed")) > 5
    assert min(pulls[result] for result in ("task", "no_task", "no_answer")) > 5
    assert min(codes[code] for code in ("ok", "predicted_late", "caller_left")) >= 3


def test_totals_are_those_of_a_plain_count(
    day: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_json(capsys, str(day))
    answered = [event for event in events if event["event"] == "answered"]
    outcomes = Counter(f"{event['outcome']}/{event['reason_code']}" for event in answered)
    assert report["overall"]["outcomes"] == outcomes
    assert report["overall"]["answers"] == len(answered)
    left = [event for event in answered if event["reason_code"] == "caller_left"]
    owed = len(answered) - sum(event["total_s"] <= event["budget_s"] for event in left)
    share = sum(event["on_time"] for event in answered) / owed
    assert report["overall"]["on_time_share"] == pytest.approx(share, abs=1e-4)
    assert (report["damaged_lines"], report["odd_lines"], report["lost_lines"]) == (0, 0, 0)


def test_rows_of_validators_are_those_of_a_plain_count(
    day: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = report_json(capsys, str(day))["validators"]
    by_hotkey: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["event"] in ("feedback", "pulled"):
            by_hotkey[event["caller"]].append(event)
    assert rows.keys() == by_hotkey.keys()
    for hotkey, known in by_hotkey.items():
        row, feedback = rows[hotkey], [event for event in known if event["event"] == "feedback"]
        fates = Counter(event["fate"] for event in feedback)
        assert row["tasks"] == len(feedback)
        assert row["accepted"] == fates["accepted"]
        assert row["below_threshold"] == fates["refused"]
        assert row["empty"] == fates["skipped"]
        assert row["failed"] == fates["failed"]
        assert row["pulls"] == Counter(e["result"] for e in known if e["event"] == "pulled")
        waits = [event for event in known if "ask_again_s" in event]
        assert row["next_pull_unix"] == waits[-1]["unix"] + waits[-1]["ask_again_s"]
        scores = [e["task_fidelity_score"] for e in feedback if e["fate"] == "accepted"]
        if scores:
            assert row["fidelity_mean"] == pytest.approx(sum(scores) / len(scores), abs=1e-4)
        if feedback:
            last = feedback[-1]
            assert row["duel_rating"] == last["current_duel_rating"]
            assert row["reward"] == last["current_miner_reward"]
            assert row["results_in_window"] == last["generations_within_the_window"]
            assert (row["uid"], row["threshold"]) == (last["uid"], 0.6)


def test_the_course_adds_up_to_the_totals(day: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_json(capsys, str(day))
    spans = report["timeline"]["spans"]
    assert report["timeline"]["span_s"] == 900
    added = Counter[str]()
    for span in spans:
        added.update(span["outcomes"])
    assert added == report["overall"]["outcomes"]
    assert sum(span["fates"].get("accepted", 0) for span in spans) == sum(
        row["accepted"] for row in report["validators"].values()
    )
    noon = [span["p95_s"] for span in spans if 14 <= (span["unix"] - BEGIN) / 3600 < 16]
    night = [span["p95_s"] for span in spans if (span["unix"] - BEGIN) / 3600 < 5]
    assert min(noon) > max(night)


def test_earnings_are_the_last_the_chain_said_and_their_course(
    day: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    earned = report_json(capsys, str(day))["earnings"]
    lines = [event for event in events if event["event"] == "earnings"]
    assert len(lines) >= 20
    assert earned["emission"] == lines[-1]["emission"]
    assert earned["alpha_per_day"] == pytest.approx(lines[-1]["emission"] * 20)  # Epochs of 72 min.
    assert (earned["place"], earned["earners"]) == (lines[-1]["place"], 9)
    assert [point["emission"] for point in earned["course"]] == [e["emission"] for e in lines]


@pytest.mark.parametrize("hours", [1, 8, 15])
def test_a_later_beginning_counts_the_lines_after_it_alone(
    day: Path, events: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], hours: int
) -> None:
    since = BEGIN + hours * 3600.0
    hour = f"2025-06-16T{hours:02}:00"
    report = report_json(capsys, "--since", hour, str(day))
    later = [event for event in events if event["unix"] >= since]
    count = Counter(event["event"] for event in later)
    assert report["since_unix"] == since
    assert report["overall"]["answers"] == count["answered"]
    assert sum(row["tasks"] for row in report["validators"].values()) == count["feedback"]
    assert report["life"]["preset"] == "embedded"  # It was told before.


def in_shell(line: str, day: Path) -> list[str]:
    if "jq" in line and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=day.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return [text.strip() for text in done.stdout.splitlines()]


def test_the_first_printed_one_liner_counts_as_the_monitor_does(
    day: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_json(capsys, str(day))
    counted = {}
    for line in in_shell(ONE_LINERS[0], day):
        count, outcome, code = re.findall(r'^\d+|(?<=: ")\w+', line)
        counted[f"{outcome}/{code}"] = int(count)
    assert counted == report["overall"]["outcomes"]


def test_the_second_printed_one_liner_counts_as_the_monitor_does(
    day: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = report_json(capsys, str(day))["validators"]
    columns = {"accepted": "accepted", "refused": "below_threshold", "skipped": "empty"}
    lines = in_shell(ONE_LINERS[1], day)
    assert len(lines) >= 10
    for line in lines:
        count, caller, fate = re.findall(r'^\d+|(?<=: ")\w+', line)
        assert rows[caller][columns.get(fate, fate)] == int(count)


def test_the_third_printed_one_liner_finds_the_median_of_the_monitor(
    day: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (median,) = in_shell(ONE_LINERS[2], day)
    known = report_json(capsys, str(day))["overall"]["seconds"]["total"]["p50"]
    assert float(median) == pytest.approx(known, rel=0.005)


def test_alerts_in_the_bad_half_hour_and_none_of_them_in_the_morning(day: Path) -> None:
    def codes(hour: float) -> set[str]:
        now = BEGIN + hour * 3600.0
        report, follower = ScoreReport(now - DAY_S), Follower(day / "score.jsonl", history=True)
        for line in follower.look():
            if (event := json.loads(line))["unix"] <= now:
                report.add(event)
        follower.close()
        settings = AlertSettings(p95_s=12.0)
        return {alert.code for alert in alerts(report, state="ready", now=now, settings=settings)}

    always = "validator_rejects_everything"
    assert codes(8.0) == {always}
    assert codes(15.5) == {always, "slow_answers"}
    assert codes(18.5) >= {always, "late_answers", "dropped_requests", "none_completed"}
    assert codes(24.0) == {always}


@pytest.fixture
def page(day: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "report.html"
    assert monitor_scores.main(["--html", str(path), str(day)]) == 0
    assert str(path) in capsys.readouterr().out
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with chromium() as running:
        yield running


@pytest.mark.timeout(60)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_from_disk_without_errors_and_without_network(
    day: Path, page: Path, browser: Browser, capsys: pytest.CaptureFixture[str], scheme: str
) -> None:
    report = report_json(capsys, str(day))
    watched = WatchedPage(
        browser, color_scheme=scheme, viewport={"width": 1200, "height": 900}, offline=True
    )
    shown = watched.page
    shown.goto(page.as_uri())
    assert watched.errors == []
    assert [url for url in watched.requests if not url.startswith("data:")] == [page.as_uri()]
    assert shown.inner_text("#answers") == f"{report['overall']['answers']:,}"
    assert shown.inner_text("#on-time") == f"{report['overall']['on_time_share']:.1%}"
    rows = [row.split("\t") for row in shown.inner_text("#validators").splitlines()[1:]]
    accepted = {int(row[1]): int(row[3]) for row in rows}
    assert accepted == {row["uid"]: row["accepted"] for row in report["validators"].values()}
    assert shown.locator("svg").count() == 6
    assert shown.locator("#assets img").count() == 10  # As many as were kept.
    assert shown.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(244, 245, 247)", "dark": "rgb(16, 19, 25)"}[scheme]
    watched.close()
