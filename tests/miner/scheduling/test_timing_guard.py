import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.pipeline import STAGES
from miner.scheduling.estimator import StageEstimator
from miner.scheduling.timing_guard import TimingGuard
from tests.support.fakes import PRIOR, Clock

TEXT = STAGES
IMAGE = STAGES[1:]
ROOM = 1.2
"""Prediction over warm-up before anything is learned."""

WHOLE = ROOM * sum(PRIOR.values())
ON_GPU = ROOM * (PRIOR["text_to_image"] + PRIOR["scene_code"] + PRIOR["splats"])


def guard(budget: float = 30.0, margin: float = 1.0) -> tuple[TimingGuard, Clock]:
    clock = Clock()
    estimator = StageEstimator(PRIOR, clock=clock)
    return TimingGuard(estimator, budget_s=budget, margin_s=margin, clock=clock), clock


@pytest.mark.parametrize(
    ("allowed", "expected"), [(None, 29.0), (60.0, 29.0), (12.0, 11.0), (1.0, 0.0), (0.01, 0.0)]
)
def test_the_budget_is_the_smaller_of_both_less_the_margin(
    allowed: float | None, expected: float
) -> None:
    assert guard()[0].budget(allowed) == pytest.approx(expected)


def test_a_request_that_fits_is_admitted_with_its_prediction() -> None:
    policy, clock = guard()
    decision = policy.admit("a", "text", TEXT, clock.now, 29.0)
    assert decision.go
    assert decision.predicted_s == pytest.approx(WHOLE)
    assert decision.left_s == pytest.approx(29.0)


def test_a_request_that_would_be_late_is_dropped_with_the_numbers() -> None:
    policy, clock = guard()
    decision = policy.admit("a", "text", TEXT, clock.now, 4.0)
    assert (decision.go, decision.reason_code) == (False, "predicted_late")
    assert decision.reason == (
        "would be late: predicted 4.80 s (0.00 s waiting for the GPU, 4.80 s of work), "
        "4.00 s left of 4.00 s"
    )
    assert policy.backlog() == 0.0


def test_an_image_task_is_predicted_without_its_first_stage() -> None:
    policy, clock = guard()
    decision = policy.admit("a", "image", IMAGE, clock.now, 29.0)
    assert decision.predicted_s == pytest.approx(WHOLE - ROOM * PRIOR["text_to_image"])


def test_the_backlog_is_the_gpu_work_ahead_and_shrinks_as_it_is_done() -> None:
    policy, clock = guard()
    policy.admit("a", "text", TEXT, clock.now, 29.0)
    assert policy.backlog() == pytest.approx(ON_GPU)
    assert policy.admit("b", "text", TEXT, clock.now, 29.0).predicted_s == pytest.approx(
        ON_GPU + WHOLE
    )
    policy.forget("b")
    policy.start_stage("a", "text_to_image")
    clock.now += 1.0
    assert policy.backlog() == pytest.approx(ON_GPU - 1.0)
    clock.now += 50.0
    assert policy.backlog() == pytest.approx(ROOM * (PRIOR["scene_code"] + PRIOR["splats"]))
    policy.forget("a")
    assert policy.backlog() == 0.0


def test_a_stage_is_not_started_when_what_is_left_would_be_late() -> None:
    policy, clock = guard()
    policy.admit("a", "text", TEXT, clock.now, 6.0)
    assert policy.start_stage("a", "text_to_image").go
    clock.now += 5.0
    decision = policy.start_stage("a", "background")
    assert (decision.go, decision.reason_code) == (False, "predicted_late_stage")
    assert "1.00 s left of 6.00 s" in decision.reason


def test_after_the_deadline_the_reason_says_so() -> None:
    policy, clock = guard()
    policy.admit("a", "text", TEXT, clock.now, 6.0)
    clock.now += 6.5
    decision = policy.start_stage("a", "background")
    assert (decision.go, decision.reason_code) == (False, "deadline_passed")
    assert "0.00 s left of 6.00 s" in decision.reason


def test_only_older_requests_and_only_before_another_gpu_stage_delay_an_admitted_one() -> None:
    policy, clock = guard()
    for name in ("old", "young"):
        policy.admit(name, "text", TEXT, clock.now, 29.0)
    assert policy.start_stage("old", "text_to_image").predicted_s == pytest.approx(WHOLE)
    old_left = ON_GPU - ROOM * PRIOR["text_to_image"]
    policy.start_stage("old", "background")
    young = policy.start_stage("young", "text_to_image")
    assert young.predicted_s == pytest.approx(WHOLE + old_left)
    assert policy.start_stage("young", "encode").predicted_s == pytest.approx(
        ROOM * PRIOR["encode"]
    )


def test_finished_requests_teach() -> None:
    policy, clock = guard()
    for number in range(60):
        policy.admit(str(number), "text", TEXT, clock.now, 29.0)
        policy.forget(str(number), dict.fromkeys(TEXT, 0.2))
    assert policy.predict("text", TEXT) == pytest.approx(1.0, rel=0.05)


def test_after_a_spike_that_dropped_everything_requests_are_admitted_again() -> None:
    policy, clock = guard()
    for number in range(6):
        policy.admit(str(number), "text", TEXT, clock.now, 1e9)
        policy.forget(str(number), {"text_to_image": 500.0})
    assert not policy.admit("after", "text", TEXT, clock.now, 29.0).go
    dropped = 0
    while not policy.admit("later", "text", TEXT, clock.now, 29.0).go:
        clock.now += 30.0
        dropped += 1
    assert dropped <= 30


durations = st.floats(0.0, 60.0)


@given(durations, st.integers(0, 12))
def test_nothing_is_ever_admitted_that_is_predicted_to_be_late(left: float, others: int) -> None:
    policy, clock = guard()
    for number in range(others):
        policy.admit(str(number), "text", TEXT, clock.now, 1e9)
    decision = policy.admit("new", "text", TEXT, clock.now, left)
    assert decision.go == (decision.predicted_s <= decision.left_s)
    assert decision.predicted_s == pytest.approx(others * ON_GPU + WHOLE)


@given(durations, durations, st.integers(0, 6), st.integers(0, 6))
def test_more_time_or_less_backlog_never_turns_a_yes_into_a_no(
    left: float, more: float, others: int, further: int
) -> None:
    def decide(left: float, others: int) -> bool:
        policy, clock = guard()
        for number in range(others):
            policy.admit(str(number), "text", TEXT, clock.now, 1e9)
        return policy.admit("new", "text", TEXT, clock.now, left).go

    assert decide(left + more, others) >= decide(left, others)
    assert decide(left, others) >= decide(left, others + further)


@given(st.lists(st.tuples(st.sampled_from(["admit", "start", "forget"]), st.floats(0, 5))))
def test_the_backlog_is_never_negative_and_empty_without_requests(
    steps: list[tuple[str, float]],
) -> None:
    policy, clock = guard()
    stage_of: dict[str, int] = {}
    for number, (step, pause) in enumerate(steps):
        clock.now += pause
        if step == "admit" and policy.admit(str(number), "text", TEXT, clock.now, 29.0).go:
            stage_of[str(number)] = 0
        elif step == "start" and stage_of:
            oldest = next(iter(stage_of))
            if stage_of[oldest] == len(TEXT):
                policy.forget(oldest, PRIOR)
                del stage_of[oldest]
            elif policy.start_stage(oldest, TEXT[stage_of[oldest]]).go:
                stage_of[oldest] += 1
            else:
                policy.forget(oldest)
                del stage_of[oldest]
        elif step == "forget" and stage_of:
            policy.forget(stage_of.popitem()[0])
        assert 0.0 <= policy.backlog() <= len(stage_of) * ON_GPU + 1e-9
    for name in stage_of:
        policy.forget(name)
    assert policy.backlog() == 0.0
