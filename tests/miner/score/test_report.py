"""The report says what the log says, whatever else the log holds."""

import json
from typing import Any

import pytest

from miner.score.report import ScoreReport


def answered(outcome: str, code: str = "ok", **extra: Any) -> dict[str, Any]:
    return {"event": "answered", "outcome": outcome, "reason_code": code, "caller": "5A", **extra}


def report_of(*events: dict[str, Any]) -> ScoreReport:
    report = ScoreReport()
    for event in events:
        report.read(json.dumps(event))
    return report


def test_outcomes_are_counted_by_reason_and_caller() -> None:
    report = report_of(
        answered("completed", on_time=True, total_s=2.0),
        answered("dropped", "predicted_late", caller="5B"),
        answered("dropped", "caller_share", caller="5B"),
    )
    assert report.overall.answers == 3
    assert report.overall.on_time_share == pytest.approx(1 / 3)
    assert report.callers["5B"].as_dict()["outcomes"] == {
        "dropped/predicted_late": 1,
        "dropped/caller_share": 1,
    }


def test_completed_answers_are_counted_by_rung() -> None:
    report = report_of(
        answered("completed", rung="full"),
        answered("completed", rung="draft"),
        answered("completed", rung="full"),
        answered("failed", "generation_error", rung="draft"),
        answered("completed"),  # By a version without rungs.
    )
    assert report.overall.as_dict()["rungs"] == {"full": 2, "draft": 1, "unknown": 1}


def test_late_answers_do_not_count_as_on_time() -> None:
    report = report_of(answered("completed", on_time=False, total_s=31.0))
    assert report.overall.on_time_share == 0.0


def test_percentiles_are_over_completed_answers_only() -> None:
    totals = [answered("completed", on_time=True, total_s=float(s)) for s in range(1, 102)]
    report = report_of(*totals, answered("dropped", "predicted_late", total_s=99.0))
    assert report.overall.percentiles()["total"] == pytest.approx((51.0, 96.0))


def test_failed_validation_is_not_a_score() -> None:
    report = report_of(
        {"event": "feedback", "caller": "5A", "task_fidelity_score": 0.8},
        {
            "event": "feedback",
            "caller": "5A",
            "task_fidelity_score": 0.0,
            "validation_failed": True,
        },
    )
    assert report.callers["5A"].fidelity == [0.8]


def test_damaged_lines_and_unknown_events_are_passed_over() -> None:
    lines = ['{"event": "answ', "", "[1]", '{"event": 3}', '{"event": "later_invention"}']
    report = ScoreReport()
    for line in (*lines, json.dumps(answered("failed", "generation_error"))):
        report.read(line)
    assert report.overall.answers == 1


def test_state_and_refusals_are_reported() -> None:
    report = report_of(
        {"event": "miner_started"},
        {"event": "state_changed", "state": "ready"},
        {"event": "refused", "reason_code": "unknown_hotkey", "count": 7},
    )
    assert report.state == "ready"
    assert report.as_dict()["refused"] == {"unknown_hotkey": 7}


@pytest.mark.parametrize(
    ("event", "owed"),
    [
        (answered("dropped", "predicted_late"), True),
        (answered("failed", "generation_error"), True),
        (answered("completed", on_time=False, total_s=31.0), True),
        (answered("rejected", "bad_task"), False),
        (answered("dropped", "caller_left"), False),
        (answered("dropped", "caller_left", total_s=3.0, budget_s=29.0), False),
        (answered("dropped", "caller_left", total_s=29.5, budget_s=29.0), True),
    ],
)
def test_an_answer_is_owed_unless_its_caller_made_a_mistake_or_left_in_time(
    event: dict[str, Any], owed: bool
) -> None:
    report = report_of(answered("completed", on_time=True), event)
    assert report.overall.on_time_share == (0.5 if owed else 1.0)
    assert report.overall.answers == 2


def test_with_no_answer_owed_the_share_is_0() -> None:
    assert report_of(answered("rejected", "bad_task")).overall.on_time_share == 0.0


def test_a_line_is_damaged_odd_or_sound() -> None:
    report = ScoreReport()
    for line in ['{"event": "answ', "[1]", '{"event": 3}', "\0\0", '{"event": "x", "a": "\ufffd"}']:
        report.read(line)
    assert (report.damaged, report.odd) == (5, 0)
    for event in [
        answered("completed", total_s="abc"),
        answered("completed", timings={"lift": "long"}),
        answered("completed", total_s=float("nan")),
        {"event": "answered", "caller": ["5A"]},
        {"event": "refused", "count": -1},
        {"event": "later_invention", "unix": "now"},
    ]:
        report.read(json.dumps(event))
    assert (report.damaged, report.odd) == (5, 6)
    report.read("")
    report.read("\ufeff" + json.dumps({"event": "later_invention"}))
    report.read(json.dumps(answered("completed", total_s=1, later={"x": [1]})))
    assert (report.damaged, report.odd) == (5, 6)
    assert report.overall.answers == 5


def test_what_was_wrong_with_engines_and_the_log_is_noted() -> None:
    report = report_of(
        {"event": "engine_lost", "engine": "gpu-0", "reason": "hangs"},
        {"event": "log_lost", "count": 12, "reason": "No space left on device"},
        {"event": "log_lost", "count": 3, "reason": "No space left on device"},
    )
    assert report.notes[0] == "engine_lost: gpu-0 hangs"
    assert report.notes[-1] == "3 lines were not written: No space left on device"
    assert report.lost == 15


def test_the_last_reason_of_a_refusal_is_kept() -> None:
    report = report_of(
        {"event": "refused", "reason_code": "server_error", "count": 2, "reason": "id 1"},
        {"event": "refused", "reason_code": "server_error", "count": 1, "reason": "id 2"},
    )
    assert report.refused == {"server_error": 3}
    assert report.refused_because == {"server_error": "id 2"}
