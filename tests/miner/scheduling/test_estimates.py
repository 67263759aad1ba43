"""What the estimates promise about the seconds of steps."""

from dataclasses import replace
from math import inf, isfinite, sqrt
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.scheduling.estimates import (
    CLIP_FACTOR,
    COUNT_HALF_LIFE_S,
    EXCESS_HALF_LIFE_S,
    MIN_WEIGHT,
    ODD_FACTOR,
    Estimates,
    Learned,
)
from tests.support.fakes import Clock

ENGINE, KEY = "gpu-0", "lift:triposr"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def estimates(clock: Clock) -> Estimates:
    return Estimates(clock)


def observe(estimates: Estimates, clock: Clock, *seconds: float) -> None:
    """Observes steps that run one after the other."""
    for value in seconds:
        clock.now += value
        estimates.observe(ENGINE, KEY, value)


def predicted(estimates: Estimates) -> float:
    return estimates.cost(ENGINE, KEY).mean


def test_mean_and_spread_converge_to_those_of_the_steps(estimates: Estimates, clock: Clock) -> None:
    random = Random(1)
    estimates.set_prior(ENGINE, {KEY: 5.0})
    costs = []
    for index in range(3000):
        observe(estimates, clock, random.gauss(2.0, 0.3))
        if index >= 100:
            costs.append(estimates.cost(ENGINE, KEY))
    assert sum(cost.mean for cost in costs) / len(costs) == pytest.approx(2.0, rel=0.02)
    spread = sqrt(sum(cost.variance for cost in costs) / len(costs))
    assert spread == pytest.approx(0.3, rel=0.1)


def test_a_quantile_is_that_of_the_steps(estimates: Estimates, clock: Clock) -> None:
    random = Random(2)
    shorter = 0
    observe(estimates, clock, *(random.gauss(2.0, 0.3) for _ in range(100)))
    for _ in range(3000):
        value = random.gauss(2.0, 0.3)
        shorter += value <= estimates.cost(ENGINE, KEY).quantile(1.645)
        observe(estimates, clock, value)
    assert shorter / 3000 == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_changed_speed_is_learned_within_20_steps_and_so_is_the_old_one_restored(
    estimates: Estimates, clock: Clock, factor: float
) -> None:
    observe(estimates, clock, *[1.0] * 100)
    observe(estimates, clock, *[factor] * 20)
    assert predicted(estimates) == pytest.approx(factor, rel=0.15)
    observe(estimates, clock, *[factor] * 80)
    observe(estimates, clock, *[1.0] * 20)
    assert predicted(estimates) == pytest.approx(1.0, rel=0.15)


def test_one_outlier_changes_a_prediction_by_little(estimates: Estimates, clock: Clock) -> None:
    observe(estimates, clock, *[1.0] * 50)
    observe(estimates, clock, 10.0)
    most = 1.0 + MIN_WEIGHT * (CLIP_FACTOR - 1.0)
    assert 1.0 < predicted(estimates) <= most + 0.01
    assert most < 1.2
    observe(estimates, clock, *[1.0] * 20)
    assert predicted(estimates) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("factor", [1 / 3, 3.0])
def test_a_prior_three_times_wrong_is_corrected_by_ten_steps(
    estimates: Estimates, clock: Clock, factor: float
) -> None:
    estimates.set_prior(ENGINE, {KEY: factor})
    observe(estimates, clock, *[1.0] * 10)
    assert predicted(estimates) == pytest.approx(1.0, rel=0.15)


def test_a_prior_that_was_too_low_does_not_return_while_nothing_is_observed(
    estimates: Estimates, clock: Clock
) -> None:
    estimates.set_prior(ENGINE, {KEY: 1 / 3})
    observe(estimates, clock, *[1.0] * 10)
    clock.now += 3600.0
    assert predicted(estimates) == pytest.approx(1.0, rel=0.15)


def test_one_step_corrects_a_prior_ten_times_too_high(estimates: Estimates, clock: Clock) -> None:
    estimates.set_prior(ENGINE, {KEY: 10.0})
    observe(estimates, clock, 1.0)
    cost = estimates.cost(ENGINE, KEY)
    assert cost.mean == pytest.approx(1.0)
    assert cost.quantile(2.0) < 1.5


def test_one_fast_step_leaves_the_usual_seconds_believable(
    estimates: Estimates, clock: Clock
) -> None:
    """A cut-out that needs no network takes milliseconds, the next one with it half a second."""
    estimates.set_prior(ENGINE, {KEY: 0.7})
    observe(estimates, clock, 0.002, *[0.7] * 10)
    assert predicted(estimates) == pytest.approx(0.7, rel=0.15)


def test_a_prior_counts_less_the_older_it_is(clock: Clock) -> None:
    after = []
    for age in (0.0, COUNT_HALF_LIFE_S, 10 * COUNT_HALF_LIFE_S):
        estimates = Estimates(clock)
        estimates.set_prior(ENGINE, {KEY: 1.5})
        clock.now += age
        observe(estimates, clock, 1.0)
        after.append(predicted(estimates))
    fresh, older, oldest = after
    assert fresh == pytest.approx(1.25, rel=0.01)
    assert 1.0 < oldest < older < fresh
    assert oldest == pytest.approx(1.0, rel=0.01)


def test_a_bad_spell_counts_less_the_longer_it_is_over(clock: Clock) -> None:
    after = []
    for pause in (0.0, 5 * COUNT_HALF_LIFE_S):
        estimates = Estimates(clock)
        observe(estimates, clock, *[1.0] * 50, *[1.8] * 30)
        clock.now += pause
        observe(estimates, clock, 1.0, 1.0)
        after.append(estimates.export()[ENGINE, KEY].mean)
    at_once, later = after
    assert at_once > 1.6
    assert later < 1.2


def test_what_exceeds_the_long_term_level_fades_while_nothing_is_observed(
    estimates: Estimates, clock: Clock
) -> None:
    observe(estimates, clock, *[1.0] * 200)
    observe(estimates, clock, *[5.0] * 20)
    before = estimates.cost(ENGINE, KEY)
    level = estimates.export()[ENGINE, KEY].level
    assert before.mean > 3.0
    assert level < 0.6 * before.mean
    clock.now += EXCESS_HALF_LIFE_S
    after = estimates.cost(ENGINE, KEY)
    assert after.mean == pytest.approx(0.5 * (before.mean + level))
    assert after.variance / after.mean**2 == pytest.approx(before.variance / before.mean**2)
    clock.now += 30 * EXCESS_HALF_LIFE_S
    assert predicted(estimates) == pytest.approx(level)


def test_a_good_spell_stays_while_nothing_is_observed(estimates: Estimates, clock: Clock) -> None:
    observe(estimates, clock, *[2.0] * 200, *[1.0] * 20)
    before = predicted(estimates)
    clock.now += 10 * EXCESS_HALF_LIFE_S
    assert predicted(estimates) == before


def test_a_failed_step_is_only_a_lower_bound(estimates: Estimates, clock: Clock) -> None:
    observe(estimates, clock, *[1.0] * 20)
    estimates.observe(ENGINE, KEY, 0.01, failed=True)
    assert predicted(estimates) == pytest.approx(1.0)
    estimates.observe(ENGINE, KEY, 1.5, failed=True)
    assert predicted(estimates) > 1.04


def test_a_failed_step_says_nothing_of_an_unknown_key(estimates: Estimates) -> None:
    estimates.observe(ENGINE, KEY, 1.0, failed=True)
    with pytest.raises(KeyError, match="lift"):
        estimates.cost(ENGINE, KEY)


def test_an_unknown_key_costs_as_much_as_the_dearest_of_its_stage(estimates: Estimates) -> None:
    estimates.set_prior(ENGINE, {"denoise:384": 0.2, "denoise:512": 0.3, "decode:512": 9.0})
    estimates.set_prior("gpu-1", {"denoise:512": 5.0, "encode:60000": 0.1})
    assert estimates.cost(ENGINE, "denoise:1024").mean == 0.3
    # A stage that only another engine has run.
    assert estimates.cost(ENGINE, "encode:120000").mean == 0.1
    with pytest.raises(KeyError, match="cutout"):
        estimates.cost(ENGINE, "cutout:small")


def test_engines_are_learned_apart(estimates: Estimates, clock: Clock) -> None:
    estimates.set_prior(ENGINE, {KEY: 1.0})
    estimates.set_prior("gpu-1", {KEY: 1.0})
    for _ in range(20):
        estimates.observe("gpu-1", KEY, 3.0)
    assert predicted(estimates) == 1.0
    assert estimates.cost("gpu-1", KEY).mean > 2.5


def test_what_an_earlier_run_knew_is_a_prior(estimates: Estimates, clock: Clock) -> None:
    kept = Learned(mean=1.5, variance=0.04, level=1.2, count=9.0, at=-1e6, observed=50)
    estimates.restore(ENGINE, KEY, kept)
    assert predicted(estimates) == 1.5
    assert estimates.cost(ENGINE, KEY).variance == pytest.approx(0.04)
    observe(estimates, clock, 1.0)
    assert estimates.export()[ENGINE, KEY].mean == pytest.approx(1.25, rel=0.01)


def test_what_an_earlier_run_knew_is_kept_although_nothing_is_observed(
    estimates: Estimates,
) -> None:
    estimates.restore(ENGINE, KEY, Learned(1.5, 0.04, 1.2, 0.0, 0.0))
    estimates.set_prior(ENGINE, {"decode:512": 1.0})
    assert estimates.export()[ENGINE, KEY].observed
    assert not estimates.export()[ENGINE, "decode:512"].observed


def test_a_warm_up_is_averaged_with_what_an_earlier_run_knew(estimates: Estimates) -> None:
    estimates.restore(ENGINE, KEY, Learned(1.5, 0.04, 1.5, 0.0, 0.0))
    estimates.set_prior(ENGINE, {KEY: 1.0, "decode:512": 0.4})
    assert predicted(estimates) == pytest.approx(1.25)
    assert estimates.cost(ENGINE, "decode:512").mean == 0.4


def test_a_warm_up_is_odd_if_it_is_much_slower_than_before(estimates: Estimates) -> None:
    estimates.restore(ENGINE, KEY, Learned(1.0, 0.01, 1.0, 0.0, 0.0))
    estimates.restore(ENGINE, "encode:60000", Learned(0.01, 1e-6, 0.01, 0.0, 0.0))
    odd = estimates.oddity(ENGINE, {"decode:512": 50.0, KEY: 1.1 * ODD_FACTOR})
    assert odd == "lift:triposr took 2.20 s, 2.2 x what it took before"
    assert estimates.oddity(ENGINE, {KEY: 0.9 * ODD_FACTOR}) is None
    assert estimates.oddity(ENGINE, {KEY: 0.1}) is None, "a fast one is welcome"
    assert estimates.oddity(ENGINE, {"encode:60000": 0.04}) is None, "milliseconds say nothing"
    assert estimates.oddity("gpu-1", {KEY: 50.0}) is None, "nothing is known of this engine"


def test_age_is_that_of_the_stage_observed_longest_ago_under_any_key(
    estimates: Estimates, clock: Clock
) -> None:
    assert estimates.seconds_since_observed(ENGINE, ["lift"]) == inf
    estimates.set_prior(ENGINE, {KEY: 1.0, "decode:512": 1.0})
    clock.now += 50.0
    estimates.observe(ENGINE, KEY, 1.0)
    clock.now += 10.0
    assert estimates.seconds_since_observed(ENGINE, ["lift"]) == 10.0
    assert estimates.seconds_since_observed(ENGINE, ["lift", "decode"]) == 60.0
    estimates.observe(ENGINE, "decode:384", 1.0)
    assert estimates.seconds_since_observed(ENGINE, ["lift", "decode"]) == 10.0


steps = st.tuples(st.floats(1e-9, 1e9), st.floats(0.0, 1e6), st.booleans())


@given(prior=st.floats(1e-9, 1e9), seen=st.lists(steps, max_size=60), pause=st.floats(0.0, 1e9))
def test_predictions_stay_positive_and_finite(
    prior: float, seen: list[tuple[float, float, bool]], pause: float
) -> None:
    clock = Clock()
    estimates = Estimates(clock)
    estimates.set_prior(ENGINE, {KEY: prior})
    for seconds, gap, failed in seen:
        clock.now += gap
        estimates.observe(ENGINE, KEY, seconds, failed=failed)
    for _ in range(2):
        cost = estimates.cost(ENGINE, KEY)
        assert isfinite(cost.mean)
        assert cost.mean > 0.0
        assert isfinite(cost.variance)
        assert cost.variance >= 0.0
        clock.now += pause


@given(seen=st.lists(st.floats(0.5, 2.0), min_size=1, max_size=60))
def test_a_mean_stays_between_what_was_observed(seen: list[float]) -> None:
    clock = Clock()
    estimates = Estimates(clock)
    observe(estimates, clock, *seen)
    learned = estimates.export()[ENGINE, KEY]
    assert min(seen) - 1e-9 <= learned.mean <= max(seen) + 1e-9
    assert min(seen) - 1e-9 <= learned.level <= max(seen) + 1e-9
    assert learned == replace(learned, observed=len(seen))
