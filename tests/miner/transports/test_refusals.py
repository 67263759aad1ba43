import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miner.score.log import ScoreLog
from miner.transports.refusals import Refusal, RefusalLog
from tests.support.fakes import Clock


def lines_of(score_log: ScoreLog) -> list[dict[str, Any]]:
    score_log.close()
    return [json.loads(line) for line in score_log.path.read_text().splitlines()]


def test_refusals_are_counted_and_written_at_most_once_a_minute(tmp_path: Path) -> None:
    clock, score_log = Clock(), ScoreLog(tmp_path)
    log = RefusalLog(score_log, "axon", clock)
    for number in range(5):
        log.note(Refusal("unknown_hotkey", f"reason {number}"))
        clock.now += 1.0
    log.note(Refusal("no_permit", "other"))
    clock.now += 60.0
    log.note(Refusal("unknown_hotkey", "last"))
    log.note(Refusal("unknown_hotkey", "at the end"))
    log.flush()
    log.flush()
    lines = lines_of(score_log)
    assert [(e["reason_code"], e["count"], e["reason"], e["window_s"]) for e in lines] == [
        ("unknown_hotkey", 1, "reason 0", 0.0),
        ("no_permit", 1, "other", 0.0),
        ("unknown_hotkey", 5, "last", 65.0),
        ("unknown_hotkey", 1, "at the end", 0.0),
    ]
    assert log.counts == {"unknown_hotkey": 7, "no_permit": 1}


def test_what_is_left_of_a_burst_is_written_once_its_minute_is_over(tmp_path: Path) -> None:
    clock, score_log = Clock(), ScoreLog(tmp_path)
    log = RefusalLog(score_log, "http", clock)
    for _ in range(600):
        log.note(Refusal("idle_connection", "silent"))
    clock.now += 59.0
    log.write_due()
    assert len(score_log.path.read_text().splitlines()) == 1
    clock.now += 1.0
    log.write_due()
    log.write_due()
    assert [(line["count"], line["window_s"]) for line in lines_of(score_log)] == [
        (1, 0.0),
        (599, 60.0),
    ]


def test_a_warning_comes_with_a_line_and_no_oftener(tmp_path: Path, warnings: list[str]) -> None:
    clock, score_log = Clock(), ScoreLog(tmp_path)
    log = RefusalLog(score_log, "http", clock)
    log.note(Refusal("no_permit", "quiet"))
    for _ in range(100):
        log.note(Refusal("idle_connection", "connections sent no request"), warn=True)
    clock.now += 60.0
    log.write_due()
    score_log.close()
    assert [line.strip() for line in warnings] == [
        "http: connections sent no request (1 x idle_connection)",
        "http: connections sent no request (99 x idle_connection)",
    ]


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_threads")
def test_no_refusal_is_lost_between_threads(tmp_path: Path) -> None:
    clock, score_log = Clock(), ScoreLog(tmp_path)
    log = RefusalLog(score_log, "axon", clock)

    def refuse() -> None:
        for number in range(2000):
            log.note(Refusal("unknown_hotkey", ""))
            if number % 100 == 0:
                clock.now += 60.0
                assert log.counts["unknown_hotkey"] > 0
                log.write_due()

    threads = [threading.Thread(target=refuse) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert log.counts == {"unknown_hotkey": 8000}
    assert sum(line["count"] for line in lines_of(score_log)) == 8000
