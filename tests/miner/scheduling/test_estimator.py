import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.estimator import (
    DEVIATIONS,
    HALF_LIFE_S,
    PRIOR_SPREAD,
    SURPRISE,
    StageEstimator,
)
from tests.support.fakes import Clock

seconds = st.floats(0.001, 1000.0)
UPPER = 1 + DEVIATIONS * PRIOR_SPREAD


def estimator(prior: float = 1.0) -> tuple[StageEstimator, Clock]:
    clock = Clock()
    return StageEstimator({"splats": prior}, clock=clock), clock


def test_before_anything_is_known_the_warm_up_with_some_room_is_predicted() -> None:
    assert estimator(2.0)[0].predict("text", "splats") == pytest.approx(2.0 * UPPER)


@given(st.floats(0.01, 100.0), st.floats(0.01, 100.0))
def test_a_steady_stage_is_learned_whatever_the_warm_up_said(prior: float, steady: float) -> None:
    learner, _ = estimator(prior)
    for _ in range(120):
        learner.observe("text", "splats", steady)
    assert learner.predict("text", "splats") == pytest.approx(steady, rel=0.02)


def test_a_varying_stage_is_predicted_towards_its_upper_end() -> None:
    learner, _ = estimator()
    for _ in range(60):
        learner.observe("text", "splats", 0.5)
        learner.observe("text", "splats", 1.5)
    assert 1.5 < learner.predict("text", "splats") < 2.5


def test_text_and_image_tasks_are_learned_apart() -> None:
    learner, _ = estimator()
    for _ in range(60):
        learner.observe("image", "splats", 5.0)
    assert learner.predict("image", "splats") == pytest.approx(5.0, rel=0.05)
    assert learner.predict("text", "splats") == pytest.approx(UPPER)


@given(seconds, st.floats(1.0, 1e6))
def test_one_outlier_cannot_raise_the_prediction_beyond_a_few_times(
    prior: float, outlier: float
) -> None:
    learner, _ = estimator(prior)
    before = learner.predict("text", "splats")
    learner.observe("text", "splats", outlier)
    assert learner.predict("text", "splats") <= SURPRISE * before


@given(st.lists(seconds, max_size=30))
def test_what_was_learned_above_the_warm_up_fades_so_that_no_spike_locks_the_miner_out(
    observations: list[float],
) -> None:
    learner, clock = estimator()
    for observation in observations:
        learner.observe("text", "splats", observation)
    high = learner.predict("text", "splats")
    clock.now += HALF_LIFE_S
    assert learner.predict("text", "splats") <= max(UPPER, (high + UPPER) / 2) + 1e-9
    clock.now += 30 * HALF_LIFE_S
    assert learner.predict("text", "splats") <= UPPER + 1e-3


@given(st.lists(seconds, max_size=30), st.floats(0.0, 1e5))
def test_waiting_never_raises_a_prediction(observations: list[float], pause: float) -> None:
    learner, clock = estimator()
    for observation in observations:
        learner.observe("text", "splats", observation)
    before = learner.predict("text", "splats")
    clock.now += pause
    assert 0.0 < learner.predict("text", "splats") <= before


def test_what_was_learned_below_the_warm_up_is_kept() -> None:
    learner, clock = estimator()
    for _ in range(60):
        learner.observe("text", "splats", 0.2)
    clock.now += 100 * HALF_LIFE_S
    assert learner.predict("text", "splats") == pytest.approx(0.2, rel=0.05)


def test_a_stage_that_the_warm_up_lacked_is_an_error_to_predict_and_nothing_to_learn() -> None:
    learner, _ = estimator()
    learner.observe("text", "painting", 1.0)
    with pytest.raises(KeyError, match="painting"):
        learner.predict("text", "painting")
