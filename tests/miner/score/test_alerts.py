"""What is wrong now is an alert with its numbers; what is right is none."""

from typing import Any

import pytest

from miner.score.alerts import Alert, AlertSettings, alerts
from miner.score.report import ScoreReport

NOW = 1_800_000_000.0
STARTED = {"event": "miner_started", "transports": ["push"], "uid": 7, "unix": NOW - 86_400.0}
READY = {"event": "state_changed", "state": "ready", "unix": NOW - 86_000.0}


def answered(ago_s: float, outcome: str = "completed", **fields: Any) -> dict[str, Any]:
    on_time = outcome == "completed"
    return {
        **{"event": "answered", "unix": NOW - ago_s, "outcome": outcome, "reason_code": "x"},
        **{"on_time": on_time, "total_s": 5.0, "budget_s": 29.0, **fields},
    }


def feedback(ago_s: float, fate: str, caller: str = "5V") -> dict[str, Any]:
    return {"event": "feedback", "unix": NOW - ago_s, "caller": caller, "uid": 3, "fate": fate}


def found(*events: dict[str, Any], state: str | None = None, **thresholds: float) -> list[Alert]:
    report = ScoreReport()
    for event in (STARTED, READY, *events):
        report.add(event)
    settings = AlertSettings(**thresholds)
    return alerts(report, state=state or report.state, now=NOW, settings=settings)


def codes(*events: dict[str, Any], state: str | None = None, **thresholds: float) -> list[str]:
    return [alert.code for alert in found(*events, state=state, **thresholds)]


def many(count: int, outcome: str = "completed", **fields: Any) -> list[dict[str, Any]]:
    return [answered(float(n), outcome, **fields) for n in range(count)]


def test_a_miner_that_answers_in_time_has_no_alert() -> None:
    assert codes(*many(100)) == []
    assert codes() == []


def test_an_alert_is_one_line_with_its_numbers_and_what_to_do() -> None:
    (alert,) = found(*many(80), *many(20, total_s=26.0))
    assert str(alert) == (
        "WARNING slow_answers: p95 of 100 answers in the last 60 min is 26.0 s, over 25 s; "
        "see which stage is slow; what else uses the GPU?"
    )


@pytest.mark.parametrize(
    ("late", "expected"), [(1, []), (2, ["warning"]), (5, ["warning"]), (6, ["critical"])]
)
def test_answers_in_time_below_99_percent_are_a_warning_and_below_95_critical(
    late: int, expected: list[str]
) -> None:
    events = [*many(100 - late), *many(late, on_time=False)]
    assert [alert.level for alert in found(*events)] == expected


def test_what_callers_did_themselves_makes_no_answer_late() -> None:
    left = many(30, "dropped", reason_code="caller_left", on_time=False)
    assert "late_answers" not in codes(*many(100), *many(30, "rejected"), *left)


@pytest.mark.parametrize(("dropped", "expected"), [(20, False), (21, True)])
def test_more_drops_than_a_fifth_are_an_alert(dropped: int, expected: bool) -> None:
    events = [*many(100 - dropped), *many(dropped, "dropped")]
    assert ("dropped_requests" in codes(*events)) is expected


def test_too_few_answers_and_old_ones_say_nothing() -> None:
    assert codes(*many(17), *many(2, on_time=False)) == []
    assert codes(*(answered(3601.0 + n, on_time=False) for n in range(100))) == []


def test_requests_of_which_none_is_completed_are_an_alert_however_few_they_are() -> None:
    assert codes(*many(2, "failed")) == []
    assert codes(*many(3, "failed")) == ["none_completed"]
    assert codes(*many(3, "rejected")) == []
    assert codes(*many(3, "failed"), answered(1700.0)) == []


PULLS = {**STARTED, "transports": ["pull"]}


def test_half_an_hour_without_an_accepted_result_is_an_alert_where_tasks_are_pulled() -> None:
    assert codes(feedback(1799.0, "accepted")) == []
    assert codes(feedback(1801.0, "accepted")) == ["no_accepted_result"]
    (alert,) = found(feedback(7200.0, "accepted"), feedback(10.0, "skipped"))
    assert alert.words == "no accepted result for 2 h"
    assert codes(PULLS, {**READY, "unix": NOW - 1801.0}) == ["no_accepted_result"]
    assert codes(PULLS, {**READY, "unix": NOW - 1799.0}) == []  # It has only begun.
    assert codes(PULLS, READY, state="gone") == ["miner_gone"]


def test_a_validator_that_rejects_the_last_results_is_named() -> None:
    good = feedback(20.0, "accepted", "5W")
    assert codes(good, *[feedback(9.0, "refused")] * 4) == []
    rejecting = [feedback(9.0, "accepted"), *[feedback(8.0, "refused")] * 5]
    (alert,) = found(good, *rejecting, feedback(7.0, "skipped"))
    assert alert.code == "validator_rejects_everything"
    assert alert.words == "validator 5V (uid 3) rejected the last 5 results"
    assert codes(good, *rejecting, feedback(1.0, "accepted")) == []


def stopped(code: int) -> dict[str, Any]:
    return {"event": "miner_stopped", "exit_code": code, "unix": NOW - 300.0}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0, ("miner_stopped", "warning")),
        (1, ("miner_stopped", "critical")),
        (2, ("miner_stopped", "critical")),
        (3, ("uid_lost", "critical")),
    ],
)
def test_a_miner_that_ended_is_told_by_its_status(code: int, expected: tuple[str, str]) -> None:
    (alert,) = found(stopped(code))
    assert (alert.code, alert.level) == expected
    assert "5 min ago" in alert.words
    assert codes(stopped(code), STARTED, READY) == []


@pytest.mark.parametrize("state", ["starting", "warming_up", "suspect", "draining"])
def test_a_miner_that_is_not_ready_for_long_is_an_alert(state: str) -> None:
    event = {"event": "state_changed", "state": state}
    assert codes({**event, "unix": NOW - 599.0}) == []
    (alert,) = found({**event, "unix": NOW - 660.0})
    assert alert.code == "not_ready"
    assert alert.words == f"it has been {state} for 11 min"


def test_lost_engines_and_a_dead_miner() -> None:
    lost = {"event": "engine_lost", "engine": "gpu-1", "reason": "hangs", "unix": NOW - 9.0}
    (alert,) = found(lost)
    assert (alert.code, "gpu-1" in alert.words) == ("engine_lost", True)
    assert codes(lost, STARTED, READY) == []
    assert codes(lost, {"event": "state_changed", "state": "dead"}) == ["miner_dead"]


def test_lost_lines_are_added_up_for_a_day() -> None:
    def lost(ago_s: float, count: int) -> dict[str, Any]:
        return {"event": "log_lost", "count": count, "reason": "full", "unix": NOW - ago_s}

    (alert,) = found(lost(90_000.0, 1000), lost(80_000.0, 7), lost(1.0, 5))
    assert alert.words == "12 lines of the score log were lost in the last 24 h"
    assert codes(lost(90_000.0, 1000)) == []


def test_a_chain_that_cannot_be_read_until_it_can() -> None:
    old = {"event": "chain_old", "age_s": 1200.0, "reason": "refused", "unix": NOW - 60.0}
    (alert,) = found(old)
    assert (alert.code, alert.words) == (
        "chain_old",
        "the last reading of the chain was 20 min old",
    )
    assert codes(old, {"event": "chain_back", "unix": NOW}) == []


def test_critical_alerts_come_first() -> None:
    events = [*many(70), *many(30, "dropped")]
    assert [alert.level for alert in found(*events)] == ["critical", "warning"]


def test_thresholds_may_be_changed() -> None:
    events = many(10, total_s=12.0)
    assert codes(*events, p95_s=10.0) == []
    assert codes(*events, p95_s=10.0, least_answers=10) == ["slow_answers"]
