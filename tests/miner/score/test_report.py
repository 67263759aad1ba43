"""The report says what the log says, whatever else the log holds."""

import json
from typing import Any

import pytest

from miner.score.report import ScoreReport, read_events


def answered(outcome: str, code: str = "ok", **extra: Any) -> dict[str, Any]:
    return {"event": "answered", "outcome": outcome, "reason_code": code, "caller": "5A", **extra}


def report_of(*events: dict[str, Any]) -> ScoreReport:
    report = ScoreReport()
    for event in read_events(json.dumps(event) for event in events):
        report.add(event)
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
    for event in read_events([*lines, json.dumps(answered("failed", "generation_error"))]):
        report.add(event)
    assert report.overall.answers == 1


def test_state_and_refusals_are_reported() -> None:
    report = report_of(
        {"event": "miner_started"},
        {"event": "state_changed", "state": "ready"},
        {"event": "refused", "reason_code": "unknown_hotkey", "count": 7},
    )
    assert report.state == "ready"
    assert report.as_dict()["refused"] == {"unknown_hotkey": 7}
