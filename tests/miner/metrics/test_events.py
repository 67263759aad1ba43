"""Counters and histograms: totals equal what happened, and hostile events make few series."""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_open
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open

from miner.metrics.events import EventMetrics
from miner.metrics.labels import FATES, KINDS, OTHER, OUTCOMES, REASON_CODES, Label, UidLabel
from miner.score.report import ScoreReport
from tests.support.fakes import Clock
from tests.support.measured_miner import Exposition

SECONDS = some.floats(0.0, 100.0)
ANSWERED = some.fixed_dictionaries(
    {
        "transport": some.sampled_from(("axon", "pull", "http")),
        "outcome": some.sampled_from(OUTCOMES),
        "reason_code": some.sampled_from(REASON_CODES),
        "on_time": some.booleans(),
        "total_s": SECONDS,
        "queue_s": SECONDS,
        "timings": some.dictionaries(some.sampled_from(("lift", "splats")), SECONDS),
    },
    optional={
        "kind": some.sampled_from(KINDS),
        "rung": some.sampled_from(("full", "fast")),
        "engine": some.sampled_from(("cuda:0", "cuda:1")),
        "predicted_s": SECONDS,
        "budget_s": SECONDS,
    },
)
FEEDBACK = some.fixed_dictionaries(
    {"fate": some.sampled_from(FATES)},
    optional={
        "uid": some.integers(0, 255),
        "task_fidelity_score": some.floats(0.0, 1.0),
        "average_fidelity_score": some.floats(0.0, 1.0),
    },
)
REFUSED = some.fixed_dictionaries(
    {
        "transport": some.sampled_from(("axon", "http")),
        "reason_code": some.sampled_from(("no_permit", "bad_api_key", "replayed")),
        "count": some.integers(1, 1000),
    }
)
EVENTS = some.lists(
    some.one_of(
        some.tuples(some.just("answered"), ANSWERED),
        some.tuples(some.just("feedback"), FEEDBACK),
        some.tuples(some.just("refused"), REFUSED),
    ),
    max_size=20,
)
ANYTHING: some.SearchStrategy[Any] = some.recursive(
    some.one_of(
        some.none(), some.booleans(), some.integers(), some.floats(), some.text(max_size=60)
    ),
    lambda inner: some.dictionaries(some.text(max_size=9), inner, max_size=3),
    max_leaves=3,
)
FIELDS = (
    "transport", "kind", "outcome", "reason_code", "rung", "engine", "timings", "total_s",
    "queue_s", "predicted_s", "budget_s", "on_time", "count", "fate", "uid", "task_fidelity_score",
    "average_fidelity_score", "version", "hotkey", "score", "first_score", "candidates", "pictures",
    "candidates_s", "scorer", "gated", "gate_probe", "gate_limit", "margin", "predicted",
)  # fmt: skip


class Metrics:
    """The series of events, in a registry of their own."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.registry = CollectorRegistry()
        self.events = EventMetrics(self.registry, clock=clock or Clock())
        self.tell = self.events.on_event

    def exposed(self) -> Exposition:
        """Parses both formats, and returns the samples of the text format."""
        list(parse_open(generate_open(self.registry).decode()))  # type: ignore[no-untyped-call]
        return Exposition(generate_latest(self.registry).decode())


def answered(**fields: Any) -> dict[str, Any]:
    base = {"transport": "axon", "kind": "text", "outcome": "completed", "reason_code": "ok"}
    rest = {"rung": "full", "engine": "local", "total_s": 4.0, "queue_s": 0.5, "on_time": True}
    return {**base, **rest, **fields}


@settings(max_examples=25)
@given(EVENTS)
def test_totals_equal_the_events_counted_one_by_one(events: list[tuple[str, Any]]) -> None:
    metrics = Metrics()
    for event, fields in events:
        metrics.tell(event, fields)
    shown = metrics.exposed()
    answers = [fields for event, fields in events if event == "answered"]
    completed = [fields for fields in answers if fields["outcome"] == "completed"]
    for labels, count in Counter(
        (f["transport"], f.get("kind", OTHER), f["outcome"], f["reason_code"]) for f in answers
    ).items():
        names = ("transport", "kind", "outcome", "reason_code")
        assert shown.value("requests_total", **dict(zip(names, labels, strict=True))) == count
    assert sum(shown.values("requests_total")) == len(answers)
    assert sum(shown.values("request_seconds_count")) == len(completed)
    total = sum(f["total_s"] for f in completed)
    assert math.isclose(sum(shown.values("request_seconds_sum")), total, abs_tol=1e-6)
    assert shown.value("queue_seconds_count") == sum("rung" in f for f in answers)
    assert sum(shown.values("stage_seconds_count")) == sum(len(f["timings"]) for f in completed)
    predicted = sum("predicted_s" in f for f in completed)
    assert shown.value("prediction_error_seconds_bucket", le="+Inf") == predicted
    feedback = [fields for event, fields in events if event == "feedback"]
    assert sum(shown.values("feedback_total")) == len(feedback)
    assert sum(shown.values("validator_feedback_total")) == len(feedback)
    scored = sum("task_fidelity_score" in f for f in feedback)
    assert shown.value("fidelity_score_count") == scored
    refused = Counter[tuple[str, str]]()
    for event, fields in events:
        if event == "refused":
            refused[fields["transport"], fields["reason_code"]] += fields["count"]
    for (transport, code), count in refused.items():
        assert shown.value("refused_total", transport=transport, reason_code=code) == count


@settings(max_examples=25)
@given(some.lists(ANSWERED, max_size=30))
def test_the_share_in_time_is_that_of_the_monitor(answers: list[dict[str, Any]]) -> None:
    metrics, report = Metrics(), ScoreReport()
    for fields in answers:
        on_time = fields["on_time"] and fields["outcome"] == "completed"
        metrics.tell("answered", {**fields, "on_time": on_time})
        report.add({"event": "answered", **fields, "on_time": on_time})
    shown = metrics.exposed()
    owed, in_time = (
        sum(shown.values("answers_owed_total")),
        sum(shown.values("answers_in_time_total")),
    )
    assert report.overall.on_time_share == (in_time / owed if owed else 0.0)


@settings(max_examples=25)
@given(
    some.lists(
        some.tuples(
            some.sampled_from(("answered", "feedback", "refused", "miner_started", "else")),
            some.dictionaries(some.sampled_from(FIELDS), ANYTHING, max_size=6),
        ),
        max_size=8,
    )
)
def test_fields_of_any_type_break_nothing(events: list[tuple[str, dict[str, Any]]]) -> None:
    metrics = Metrics()
    for event, fields in events:
        metrics.tell(event, fields)
    shown = metrics.exposed()
    answers = sum(event == "answered" for event, _ in events)
    assert sum(shown.values("requests_total")) == answers
    assert not any(math.isnan(sample.value) for sample in shown.samples)


def test_three_thousand_hostile_events_make_a_bounded_number_of_series() -> None:
    metrics = Metrics()
    for number in range(3_000):
        word = f"w{number}"
        metrics.tell(
            "answered",
            answered(
                transport=word, kind=word, reason_code=word, rung=word, engine=word,
                timings={word: 1.0}, task_id=word, caller=word, score=0.5, scorer=word,
                gate_limit=0.6, gated=True,
            ),
        )  # fmt: skip
        metrics.tell("refused", {"transport": word, "reason_code": word, "count": 1})
        metrics.tell("feedback", {"fate": word, "uid": number, "average_fidelity_score": 0.5})
    shown = metrics.exposed()
    assert len(shown.values("requests_total")) == 1
    assert len(shown.values("refused_total", transport=OTHER)) == 64 + 1
    assert len(shown.values("validator_fidelity_score")) == 256 + 1
    assert len(shown.values("stage_seconds_count")) <= 17
    assert len(shown.values("gate_limit")) == 8 + 1
    assert len(shown.samples) < 6_000
    assert sum(shown.values("requests_total")) == 3_000
    assert sum(shown.values("refused_total")) == 3_000


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\nb", '"', "ä", "x" * 41, "{}", None, 3, True, b"a", ["a"]]
)
def test_a_label_takes_words_only(value: object) -> None:
    assert Label(most=10)(value) == OTHER


def test_a_label_takes_what_it_knows_and_the_first_words_that_come() -> None:
    label = Label(("known",), most=2)
    assert [label(word) for word in ("one", "two", "three", "known", "one")] == [
        "one", "two", OTHER, "known", "one",
    ]  # fmt: skip


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (65535, "65535"), (65536, OTHER)])
def test_a_uid_is_a_number_of_16_bits(value: object, shown: str) -> None:
    assert UidLabel()(value) == shown


@pytest.mark.parametrize("value", [-1, True, "3", 3.0, None])
def test_what_is_no_uid_is_other(value: object) -> None:
    assert UidLabel()(value) == OTHER


@pytest.mark.parametrize("score", [-1.0, 1.5, 1e300, "0.5", True])
def test_a_score_that_a_validator_makes_up_is_not_counted(score: object) -> None:
    metrics = Metrics()
    both = {"task_fidelity_score": score, "average_fidelity_score": score}
    metrics.tell("feedback", {"fate": "accepted", "uid": 1, **both})
    shown = metrics.exposed()
    assert shown.value("fidelity_score_count") == 0
    assert shown.values("validator_fidelity_score") == []
    assert shown.value("feedback_total", fate="accepted") == 1


def test_only_completed_requests_are_in_the_times() -> None:
    metrics = Metrics()
    metrics.tell("answered", answered(total_s=4.0, timings={"lift": 1.0}, predicted_s=5.0))
    dropped = answered(outcome="dropped", reason_code="deadline_passed", on_time=False)
    metrics.tell("answered", {**dropped, "total_s": 30.0, "timings": {"lift": 9.0}})
    shown = metrics.exposed()
    assert shown.value("request_seconds_sum", transport="axon", kind="text") == 4.0
    assert shown.value("stage_seconds_sum", stage="lift", rung="full", engine="local") == 1.0
    assert shown.value("prediction_error_seconds_bucket", le="1.0") == 1
    assert shown.value("prediction_error_seconds_bucket", le="0.5") == 0
    assert shown.value("queue_seconds_count") == 2
    assert shown.value("answers_owed_total", transport="axon") == 2
    assert shown.value("answers_in_time_total", transport="axon") == 1


def test_a_caller_that_leaves_in_time_is_owed_nothing_and_one_that_leaves_late_is() -> None:
    metrics = Metrics()
    left = answered(outcome="dropped", reason_code="caller_left", on_time=False, budget_s=10.0)
    metrics.tell("answered", {**left, "total_s": 3.0})
    assert metrics.exposed().values("answers_owed_total") == []
    metrics.tell("answered", {**left, "total_s": 11.0})
    assert metrics.exposed().values("answers_owed_total") == [1.0]


def test_series_of_the_transports_in_use_begin_at_zero() -> None:
    metrics = Metrics()
    metrics.events.expect(("axon",))
    shown = metrics.exposed()
    assert shown.value("requests_total", transport="axon", kind="text", outcome="completed") == 0
    assert shown.value("answers_owed_total", transport="axon") == 0
    assert shown.values("feedback_total") == []


SCORED = {
    "score": 0.75, "first_score": 0.5, "scorer": "validator, image alignment by convnext",
    "candidates": 3, "pictures": 6, "candidates_s": 12.0, "gated": False, "gate_limit": 0.65,
    "margin": 0.05, "total_s": 16.0, "predicted_s": 5.0,
}  # fmt: skip


def test_scores_candidates_and_verdicts_are_counted_as_they_were_answered() -> None:
    metrics = Metrics()
    metrics.tell("answered", answered(**SCORED))
    metrics.tell("answered", answered(**{**SCORED, "score": 0.5, "gated": True, "margin": -0.1}))
    metrics.tell("answered", answered(**{**SCORED, "score": 0.5, "gate_probe": True}))
    metrics.tell("answered", answered(kind="image"))  # Of a miner without a scorer.
    shown = metrics.exposed()
    assert shown.value("own_score_sum", transport="axon", kind="text") == 1.75
    assert shown.value("score_gain_sum") == 0.25
    assert shown.value("score_gain_bucket", le="0.0") == 2
    for name, count in (("candidates", 9), ("pictures", 18), ("candidates_seconds", 36.0)):
        assert shown.value(f"{name}_total", transport="axon", kind="text") == count
    for verdict in ("passed", "gated", "probe"):
        assert shown.value("gate_verdicts_total", transport="axon", verdict=verdict) == 1
    assert shown.values("own_score_count", kind="image") == []
    scorer = {"scorer": "validator, image alignment by convnext"}
    assert shown.value("gate_limit", **scorer) == 0.65
    assert shown.value("gate_margin", **scorer) == 0.05


def test_seconds_for_candidates_make_no_first_object_late_and_no_prediction_wrong() -> None:
    metrics = Metrics()
    metrics.tell("answered", answered(**SCORED))
    shown = metrics.exposed()
    assert shown.value("request_seconds_sum") == 16.0
    assert shown.value("first_object_seconds_sum") == 4.0
    assert shown.value("prediction_error_seconds_bucket", le="0.5") == 0
    assert shown.value("prediction_error_seconds_bucket", le="1.0") == 1


def test_own_scores_are_compared_with_those_of_accepted_results() -> None:
    metrics = Metrics()
    metrics.tell("feedback", {"fate": "accepted", "predicted": 0.75, "task_fidelity_score": 0.72})
    metrics.tell("feedback", {"fate": "refused", "predicted": 0.75, "task_fidelity_score": 0.0})
    metrics.tell("feedback", {"fate": "accepted", "task_fidelity_score": 0.72})
    shown = metrics.exposed()
    assert shown.value("score_error_bucket", le="+Inf") == 1
    assert shown.value("score_error_bucket", le="0.02") == 0
    assert shown.value("score_error_bucket", le="0.05") == 1
    assert shown.value("fidelity_score_count") == 3


def test_the_last_completion_and_the_last_change_of_state_are_remembered() -> None:
    clock = Clock(1000.0)
    metrics = Metrics(clock)

    def remembered() -> tuple[float | None, float]:
        return metrics.events.last_completed, metrics.events.state_since

    clock.now = 1010.0
    metrics.tell("answered", answered(outcome="failed", reason_code="generation_error"))
    assert remembered() == (None, 1000.0)
    metrics.tell("answered", answered())
    clock.now = 1020.0
    metrics.tell("state_changed", {"state": "draining", "previous": "ready"})
    assert remembered() == (1010.0, 1020.0)


def test_what_the_chain_gives_is_missing_until_it_is_read() -> None:
    metrics = Metrics()
    assert metrics.exposed().values("incentive") == []
    metrics.tell("earnings", {"uid": 7, "incentive": 0.01, "emission": 1.5, "place": 12})
    metrics.tell("earnings", {"uid": 7, "incentive": 0.02, "emission": 2.5, "place": 11})
    shown = metrics.exposed()
    names = ("incentive", "emission_alpha", "place")
    assert [shown.value(name) for name in names] == [0.02, 2.5, 11]


def test_the_build_names_the_place_on_the_subnet() -> None:
    metrics = Metrics()
    place = {"netuid": 17, "uid": 3, "hotkey": "5H", "budget_s": 25.0}
    made = {"version": "1.2", "preset": "gpu24", "back_end": "triposr"}
    metrics.tell("miner_started", {**made, **place})
    shown = metrics.exposed()
    (labels,) = (s.labels for s in shown.samples if s.name == "splat_miner_build_info")
    assert labels == {
        **made, "netuid": "17", "uid": "3", "hotkey": "5H",
    }  # fmt: skip
    assert shown.value("budget_seconds") == 25.0
