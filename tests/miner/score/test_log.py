import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from miner.logs import configure_logs
from miner.request import Answer, Caller
from miner.score.log import ScoreLog
from protocol.errors import SetupError

NOW = 1769860800.25


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ScoreLog]:
    opened = ScoreLog(tmp_path / "logs", clock=lambda: NOW)
    yield opened
    opened.close()


def lines(log: ScoreLog) -> list[dict[str, object]]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_an_event_is_one_json_line_with_both_forms_of_its_time(log: ScoreLog) -> None:
    log.write("state_changed", state="ready", previous="warming_up", reason=None)
    assert lines(log) == [
        {
            "ts": "2026-01-31T12:00:00.250000+00:00",
            "unix": NOW,
            "event": "state_changed",
            "state": "ready",
            "previous": "warming_up",
        }
    ]


@pytest.mark.parametrize("text", ["{evil}", "<red>x</red>", "a\nb", "\x1b[2J", "é\u2028", "%s {0}"])
def test_whatever_a_field_holds_stays_on_its_line(log: ScoreLog, text: str) -> None:
    log.write("note", reason=text)
    assert len(log.path.read_text(encoding="utf-8").split("\n")) == 2
    assert lines(log)[0]["reason"] == text
    assert log.path.read_bytes().isascii()


def test_numbers_are_rounded_to_microseconds(log: ScoreLog) -> None:
    log.write("note", total_s=0.1 + 0.2, timings={"splats": 1 / 3})
    assert lines(log)[0]["total_s"] == 0.3
    assert lines(log)[0]["timings"] == {"splats": 0.333333}


def test_an_answer_is_written_as_the_document_says(log: ScoreLog) -> None:
    answer = Answer(
        "completed",
        "ok",
        "done",
        "t\n1",
        predicted_s=4.0,
        budget_s=29.0,
        timings={"splats": 1.5, "encode": 0.5},
        total_s=2.25,
        gaussians=9000,
        asset=b"12345",
    )
    log.answered(answer, request_id="r", caller=Caller("5F", 3), transport="axon", kind="text")
    (line,) = lines(log)
    assert line["task_id"] == "t?1"
    assert line["queue_s"] == 0.25
    assert (line["on_time"], line["gaussians"], line["bytes"]) == (True, 9000, 5)
    document = (Path(__file__).parents[3] / "docs" / "score-log.md").read_text()
    for name in line:
        assert f"`{name}`" in document


def test_a_drop_has_no_size_and_is_not_on_time(log: ScoreLog) -> None:
    answer = Answer("dropped", "predicted_late", "no", "t", total_s=0.1, budget_s=29.0)
    log.answered(answer, request_id="r", caller=Caller("5F"), transport="axon", kind="text")
    (line,) = lines(log)
    assert line["on_time"] is False
    assert not {"gaussians", "bytes", "valid", "uid", "stage"} & line.keys()


def test_the_score_log_and_the_program_log_do_not_mix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logs("INFO", tmp_path)
    log = ScoreLog(tmp_path)
    try:
        logger.info("hello")
        log.write("note")
    finally:
        log.close()
        logger.remove()
    assert "hello" in capsys.readouterr().err
    assert "hello" in (tmp_path / "miner.log").read_text()
    assert "note" not in (tmp_path / "miner.log").read_text()
    assert [line["event"] for line in lines(log)] == ["note"]


def test_two_score_logs_do_not_mix(tmp_path: Path) -> None:
    first, second = ScoreLog(tmp_path / "a"), ScoreLog(tmp_path / "b")
    first.write("one")
    second.write("two")
    first.close()
    second.close()
    assert [line["event"] for line in lines(first)] == ["one"]
    assert [line["event"] for line in lines(second)] == ["two"]


def test_a_full_file_is_set_aside(tmp_path: Path) -> None:
    log = ScoreLog(tmp_path, max_mebibytes=1)
    for _ in range(12):
        log.write("note", text="x" * 100_000)
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) == 2
    assert files[-1] == "score.jsonl"
    assert files[0].startswith("score.2")
    assert files[0].endswith(".jsonl")


def test_a_folder_that_cannot_be_made_is_a_start_up_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"--log\.dir"):
        ScoreLog(tmp_path / "file" / "logs")
    with pytest.raises(SetupError, match=r"--log\.dir"):
        configure_logs("INFO", tmp_path / "file" / "logs")
    logger.remove()
