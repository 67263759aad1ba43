import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from miner.file_lock import FOLDER_LOCK, FileLock, look
from miner.logs import configure_logs
from miner.request import Answer, Caller
from miner.score.log import ScoreLog
from protocol.errors import SetupError
from tests.support.fakes import ball

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
        cloud=ball(),
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


def test_events_of_a_full_disk_are_written_when_it_is_back_and_lost_ones_counted(
    tmp_path: Path,
) -> None:
    (tmp_path / "score.jsonl").symlink_to("/dev/full")
    log = ScoreLog(tmp_path, clock=lambda: NOW, most_waiting_bytes=5000)
    for n in range(100):
        log.write("note", n=n)
    assert not log.flush(0.01)
    (problem,) = log.problems.sentences
    assert "No space left on device" in problem
    (tmp_path / "score.jsonl").unlink()
    assert log.flush()
    *kept, lost = lines(log)
    assert log.problems.sentences == []
    assert [line["n"] for line in kept] == list(range(100 - len(kept), 100))
    assert lost["event"] == "log_lost"
    assert lost["count"] == 100 - len(kept)
    log.close()


@pytest.mark.parametrize("remove", ["file", "folder"])
def test_a_removed_log_comes_back_with_the_next_event(tmp_path: Path, remove: str) -> None:
    log = ScoreLog(tmp_path / "logs")
    log.write("one")
    log.path.unlink()
    if remove == "folder":
        log.path.parent.rmdir()
    log.write("two")
    assert [line["event"] for line in lines(log)] == ["two"]
    log.close()


def test_the_lock_comes_back_with_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "logs" / FOLDER_LOCK
    lock = FileLock(path, what="the folder", flag="--log.dir")
    log = ScoreLog(tmp_path / "logs", lock=lock)
    shutil.rmtree(tmp_path / "logs")
    log.write("one")
    assert look(path)[0] is True
    assert log.problems.sentences == []
    path.unlink()
    other = FileLock(path, what="the folder", flag="--log.dir")
    log.path.unlink()
    log.write("two")
    assert log.flush()
    assert [line["event"] for line in lines(log)] == ["two"]
    assert "in use by process" in log.problems.sentences[0]
    other.release()
    lock.release()
    log.close()


def test_an_event_that_is_written_is_in_the_file(log: ScoreLog) -> None:
    for n in range(200):
        log.write("note", n=n)
        assert lines(log)[-1]["n"] == n


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": float("-inf")}])
def test_a_number_that_json_does_not_have_is_left_out(log: ScoreLog, value: object) -> None:
    log.write("feedback", task_fidelity_score=value, caller="5F")
    (line,) = lines(log)
    assert line["caller"] == "5F"
    assert line.get("task_fidelity_score", {}) == {}


def test_a_text_of_megabytes_is_cut(log: ScoreLog) -> None:
    log.write("note", reason="x" * 3_000_000)
    assert len(lines(log)[0]["reason"]) < 200_000  # type: ignore[arg-type]


def test_events_of_several_threads_are_whole_lines(log: ScoreLog) -> None:
    def write(thread: int) -> None:
        for n in range(200):
            log.write("note", thread=thread, n=n, text="x" * 500)

    threads = [threading.Thread(target=write, args=[thread]) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    for number in range(4):
        assert [line["n"] for line in lines(log) if line["thread"] == number] == list(range(200))
