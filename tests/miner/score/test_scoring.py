"""What the monitor says of own scores: candidates, the gate, and what validators said of them."""

import json
import random
from typing import Any

import pytest
from rich.console import Console

from miner.scheduling.gate import GateLimits, Pair, calibrate
from miner.score.alerts import Alert, alerts
from miner.score.html import render_html
from miner.score.plots import HEIGHT, WIDTH, plots
from miner.score.report import ScoreReport
from miner.score.scoring import bins_of, in_short
from scripts.monitor_terminal import render, stage_rank

NOW = 1_800_000_000.0
CHOSEN = {"score": 0.66, "first_score": 0.51, "candidates": 9, "candidates_s": 12.5}
SCORER = "embedded"


def answered(**fields: Any) -> dict[str, Any]:
    return {
        **{"event": "answered", "unix": NOW, "ts": "2027-01-15T08:00:00", "outcome": "completed"},
        **{"reason_code": "ok", "on_time": True, "total_s": 20.0, "caller": "5V", "task_id": "t"},
        **{"request_id": "ab", "scorer": SCORER, "gate_limit": 0.613, "margin": 0.013, **fields},
    }


def feedback(predicted: float, given: float | None, **fields: Any) -> dict[str, Any]:
    return {
        **{"event": "feedback", "unix": NOW, "caller": "5V", "uid": 3, "threshold": 0.6},
        **{"fate": "refused" if given is None else "accepted", "task_fidelity_score": given or 0.0},
        **{"predicted": predicted, "scorer": SCORER, "task_id": "t", **fields},
    }


def judged(count: int, *, bias: float = 0.0, scorer: str = SCORER) -> list[dict[str, Any]]:
    draw = random.Random(5)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        true = draw.gauss(0.65, 0.08)
        predicted = true + bias + draw.gauss(0.0, 0.03)
        if predicted >= 0.6:
            given = round(true, 3) if true >= 0.6 else None
            found.append(feedback(round(predicted, 3), given, scorer=scorer))
    return found


def report_of(*events: dict[str, Any]) -> ScoreReport:
    report = ScoreReport()
    for event in events:
        report.read(json.dumps(event))
    return report


def shown(report: ScoreReport) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(report, now=NOW))
    console.file.close()
    return console.export_text()


def page(report: ScoreReport) -> str:
    return render_html(report, state="ready", process="", alerts=[], now=NOW)


def test_candidates_their_gain_and_gated_answers_are_counted() -> None:
    report = report_of(
        answered(**CHOSEN),
        answered(score=0.55, first_score=0.55, candidates=1, gated=True),
        answered(score=0.5, first_score=0.4, candidates=2, candidates_s=7.5, gate_probe=True),
        answered(),  # By a version without scores.
        answered(outcome="dropped", reason_code="predicted_late"),
    )
    found = report.as_dict()["scoring"]
    assert (found["scored"], found["gated"], found["probes"]) == (3, 1, 1)
    assert found["gated_share"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["candidates_per_answer"] == 4.0
    assert found["candidates_s"] == pytest.approx(20.0 / 3, abs=1e-4)
    assert found["first_score_mean"] == pytest.approx((0.51 + 0.55 + 0.4) / 3, abs=1e-4)
    assert found["score_mean"] == pytest.approx((0.66 + 0.55 + 0.5) / 3, abs=1e-4)
    assert report.odd == 0


def test_predicted_scores_are_set_against_those_of_validators_by_scorer() -> None:
    report = report_of(
        feedback(0.61, None),
        feedback(0.62, 0.7),
        feedback(0.64, 0.6),
        feedback(0.72, 0.8, scorer="validator"),
        feedback(0.58, 0.9, fate="unknown"),
        feedback(0.0, None, fate="skipped", gated=True),
        {"event": "feedback", "caller": "5V", "fate": "accepted", "task_fidelity_score": 0.8},
        answered(score=0.7),
    )
    scorers = report.as_dict()["scoring"]["scorers"]
    assert scorers.keys() == {SCORER, "validator"}
    row = scorers[SCORER]
    assert (row["judged"], row["accepted"], row["gate_limit"]) == (3, 2, 0.613)
    assert row["bins"] == [{"low": 0.6, "high": 0.65, "judged": 3, "accepted": 2, "given": 0.65}]
    assert row["implied_threshold"] == 0.6  # Of fewer than twenty.


def test_the_implied_threshold_is_what_the_gate_would_learn_from_the_same_verdicts() -> None:
    events = judged(80, bias=0.05)
    pairs = [
        Pair(e["predicted"], e["fate"] == "accepted", None, e["threshold"], e["scorer"])
        for e in events
    ]
    margin = calibrate(pairs, GateLimits()).margin
    row = report_of(*events).as_dict()["scoring"]["scorers"][SCORER]
    assert margin > 0.02
    assert row["implied_threshold"] == pytest.approx(0.6 + margin, abs=1e-4)


def test_every_pair_is_in_one_bin() -> None:
    draw = random.Random(1)
    pairs = [Pair(draw.uniform(0.0, 1.2), True, 0.7, 0.6, "a") for _ in range(300)]
    found = bins_of([*pairs, Pair(1e9, False, None, 0.6, "a"), Pair(0.6, True, 0.6, 0.6, "a")])
    assert sum(each.judged for each in found) == 302
    assert all(each.high - each.low == pytest.approx(0.05) for each in found)
    assert (found[0].low, found[-1].high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (CHOSEN, "0.51>0.66 of 9"),
        ({**CHOSEN, "gated": True}, "gated 0.51>0.66 of 9"),
        ({"score": 0.7, "candidates": 1}, "0.70"),
        ({"score": 0.7, "gated": True}, "gated 0.70"),
        ({"score": "high"}, ""),
        ({}, ""),
    ],
)
def test_a_task_is_told_in_short(event: dict[str, Any], words: str) -> None:
    assert in_short(event) == words


def test_the_terminal_shows_summary_tasks_and_calibration() -> None:
    text = shown(report_of(answered(**CHOSEN), *judged(40)))
    assert "candidates: 9.0 in 12.5 s   own score 0.510 > 0.660   gated: 0 (0.0%)" in text
    assert "completed    20.00 s  0.51>0.66 of 9" in text
    assert "own score, implied 0.59" in text
    assert "0.60 to 0.65" in text
    assert len(text.splitlines()) <= 23


def test_the_terminal_without_scores_is_as_before() -> None:
    plain = {k: v for k, v in answered().items() if k not in ("scorer", "gate_limit", "margin")}
    text = shown(report_of(plain))
    assert "own score" not in text
    assert "candidates" not in text
    assert "completed    20.00 s  ok" in text


def test_the_page_shows_summary_tasks_calibration_and_plot() -> None:
    told = page(report_of(answered(**CHOSEN), *judged(40), *judged(25, scorer="validator, x")))
    assert "0.510 → 0.660" in told
    assert "own score, first object → best of 9.0, 12.5 s later" in told
    assert "own 0.51&gt;0.66 of 9" in told
    assert told.count('<td colspan="5"') == 2
    assert "Own score against validators, 40 results of scorer embedded" in told
    assert "Own score against validators, 25 results of scorer validator, x" in told
    assert "the gate&#39;s last limit 0.613" in told or "the gate's last limit 0.613" in told


def test_a_log_without_scores_makes_a_page_without_calibration() -> None:
    plain = {k: v for k, v in answered().items() if k not in ("scorer", "gate_limit", "margin")}
    told = page(report_of(plain))
    assert "Calibration" not in told
    assert 'id="gated"' not in told


@pytest.mark.parametrize("predicted", [0.0, 0.3, 0.6, 1.0, 1e9])
def test_everything_in_the_calibration_plot_is_within_it(predicted: float) -> None:
    events = [feedback(predicted, 0.7), feedback(predicted, None), feedback(0.6, 5.0)]
    (plot,) = (each for each in plots(report_of(*events)) if "Own score" in each.title)
    dots = [dot for line in plot.lines for dot in line.dots]
    assert len(dots) == 3
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y, _ in dots)
    assert all(bar.x >= 0 and bar.x + bar.width <= WIDTH for bar in plot.bars)


def found(*events: dict[str, Any]) -> list[Alert]:
    return [
        alert
        for alert in alerts(report_of(*events), state="ready", now=NOW)
        if alert.code == "scorer_disagrees"
    ]


def test_a_scorer_that_says_what_validators_say_is_no_alert() -> None:
    assert found(*judged(60)) == []


def test_a_scorer_that_promises_what_validators_refuse_is_an_alert_with_its_numbers() -> None:
    refused = [feedback(0.75, None) for _ in range(20)]
    (alert,) = found(*judged(60), *refused, *refused, *refused[:10])
    assert alert.level == "warning"
    assert alert.words == (
        "scorer embedded would have accepted 98% of the last 50 results that validators judged; "
        "they accepted 0%"
    )
    assert found(*refused[:19]) == []


def test_a_scorer_that_would_refuse_what_validators_accept_is_an_alert() -> None:
    assert len(found(*(feedback(0.45, 0.8, gate_probe=True) for _ in range(20)))) == 1


def test_stages_of_candidates_stand_where_they_run() -> None:
    order = ["cutout", "rate", "lift", "encode", "score", "total"]
    assert sorted(["total", "score", "rate", "encode", "lift", "cutout"], key=stage_rank) == order
