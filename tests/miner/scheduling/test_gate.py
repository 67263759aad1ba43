"""The gate submits what validators will probably accept, and learns from their verdicts."""

import random
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miner.scheduling.gate import (
    MOST_SCORERS,
    PROBE_AFTER,
    WINDOW,
    Gate,
    GateLimits,
    Pair,
    calibrate,
)

LIMITS = GateLimits()


def pair(predicted: float, accepted: bool, *, scorer: str = "a", probe: bool = False) -> Pair:
    return Pair(predicted, accepted, predicted if accepted else None, 0.6, scorer, probe)


def feedback(count: int, *, bias: float, seed: int, limit: float = 0.6) -> list[Pair]:
    """Verdicts on results of a scorer that says `bias` too much, with an error of 0.03."""
    draw = random.Random(seed)
    found: list[Pair] = []
    while len(found) < count:
        true = draw.gauss(0.65, 0.1)
        predicted = true + bias + draw.gauss(0.0, 0.03)
        if predicted >= limit:
            found.append(Pair(predicted, true >= 0.6, true if true >= 0.6 else None, 0.6, "a"))
    return found


scores = st.floats(0.0, 1.0)
anything = st.floats(allow_nan=True, allow_infinity=True)
pairs = st.lists(st.builds(pair, scores, st.booleans()), max_size=80)


def test_a_score_passes_from_the_threshold_on() -> None:
    gate = Gate()
    assert gate.judge(0.6, "a").passed
    low = gate.judge(0.599, "a")
    assert not low.passed
    assert (low.limit, low.margin, low.probe) == (0.6, 0.0, False)
    assert low.reason == "its score 0.599 is below 0.600: threshold 0.6, margin +0.000"


def test_the_validators_own_threshold_counts_where_it_says_one() -> None:
    gate = Gate(GateLimits(margin=0.05))
    assert gate.judge(0.7, "a", 0.65).passed
    assert not gate.judge(0.69, "a", 0.65).passed
    assert gate.judge(0.66, "a").passed


def test_a_gate_that_is_off_lets_everything_pass() -> None:
    assert Gate(GateLimits(enabled=False)).judge(0.0, "a").passed


def test_a_start_margin_beyond_the_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the margin 0\.2 is farther from 0 than 0\.15"):
        GateLimits(margin=0.2)


@given(st.lists(st.builds(pair, scores, st.booleans()), max_size=19))
def test_the_margin_never_moves_before_twenty_verdicts(few: list[Pair]) -> None:
    assert Gate(GateLimits(margin=0.03), few).judge(0.9, "a").margin == 0.03


def test_the_margin_moves_with_the_twentieth_verdict() -> None:
    gate = Gate(None, [pair(0.62, False) for _ in range(19)])
    assert gate.judge(0.9, "a").margin == 0.0
    gate.observe(pair(0.62, False))
    assert gate.judge(0.9, "a").margin > 0.02


@settings(max_examples=60)
@given(pairs, st.sampled_from([-0.1, 0.0, 0.07]))
def test_the_margin_stays_within_its_bounds(seen: list[Pair], start: float) -> None:
    gate = Gate(GateLimits(margin=start, most=0.1), seen)
    assert -0.1 <= gate.judge(0.9, "a").margin <= 0.1


@given(st.lists(anything, min_size=30, max_size=40), st.booleans())
def test_whatever_is_observed_the_margin_is_a_number_within_its_bounds(
    predicted: list[float], accepted: bool
) -> None:
    gate = Gate(None, [Pair(p, accepted, p, 0.6, "a") for p in predicted])
    assert -0.15 <= gate.judge(0.9, "a").margin <= 0.15


@settings(max_examples=60)
@given(st.lists(scores, min_size=20, max_size=60), st.sampled_from([-0.05, 0.0, 0.05]))
def test_the_margin_does_not_rise_where_everything_was_accepted(
    predicted: list[float], start: float
) -> None:
    limits = GateLimits(margin=start)
    assert calibrate([pair(p, True) for p in predicted], limits).margin <= start + 1e-9


@settings(max_examples=60)
@given(st.lists(st.floats(0.6, 0.65), min_size=20, max_size=60))
def test_the_margin_rises_where_results_just_above_the_limit_are_refused(
    predicted: list[float],
) -> None:
    margin = calibrate([pair(p, False) for p in predicted], LIMITS).margin
    assert margin > 0.03


@settings(max_examples=60)
@given(st.lists(st.builds(pair, scores, st.booleans()), min_size=20, max_size=60), st.randoms())
def test_the_order_of_the_verdicts_does_not_matter(seen: list[Pair], draw: random.Random) -> None:
    shuffled = list(seen)
    draw.shuffle(shuffled)
    assert calibrate(shuffled, LIMITS) == calibrate(seen, LIMITS)


@pytest.mark.parametrize("bias", [-0.08, 0.0, 0.08])
def test_the_margin_is_the_bias_of_the_scorer_after_two_hundred_verdicts(bias: float) -> None:
    for seed in range(5):
        seen = feedback(200, bias=bias, seed=seed, limit=0.6 - 0.1)
        assert calibrate(seen, LIMITS).margin == pytest.approx(bias, abs=0.02)


def test_one_refusal_far_above_the_limit_teaches_little() -> None:
    seen = feedback(100, bias=0.0, seed=1)
    before = calibrate(seen, LIMITS).margin
    after = calibrate([*seen, pair(0.95, False)], LIMITS).margin
    assert abs(after - before) < 0.01


def test_verdicts_older_than_the_window_are_forgotten() -> None:
    gate = Gate(None, feedback(100, bias=0.1, seed=1))
    assert gate.judge(0.9, "a").margin > 0.05
    for verdict in feedback(WINDOW, bias=0.0, seed=2):
        gate.observe(verdict)
    assert len(gate.pairs) == WINDOW
    assert gate.judge(0.9, "a").margin == calibrate(gate.pairs, LIMITS).margin < 0.03


def test_scorers_are_learned_apart() -> None:
    gate = Gate(None, [pair(0.62, False, scorer="embedded") for _ in range(50)])
    assert gate.judge(0.9, "embedded").margin > 0.03
    assert gate.judge(0.9, "validator").margin == 0.0
    assert not gate.judge(0.62, "embedded").passed
    assert gate.judge(0.62, "validator").passed


def test_no_more_scorers_are_kept_than_there_may_be() -> None:
    gate = Gate(None, [pair(0.7, True, scorer=f"s{n}") for n in range(50)])
    gate.observe(pair(0.7, True, scorer="s42"))
    for n in range(50):
        gate.judge(0.1, f"t{n}")
    gate.observe(pair(0.7, True, scorer="s49"))
    assert [each.scorer for each in gate.pairs] == ["s49"]
    assert len(gate._records) <= MOST_SCORERS


def test_without_learning_the_margin_stays() -> None:
    gate = Gate(GateLimits(margin=0.02, learn=False), feedback(100, bias=0.1, seed=1))
    assert gate.judge(0.9, "a").margin == 0.02
    assert gate.calibration("a").margin > 0.05


def test_what_was_learned_survives_as_its_pairs() -> None:
    gate = Gate(None, [*feedback(60, bias=0.05, seed=3), pair(0.5, True, probe=True)])
    again = Gate(None, gate.pairs)
    assert again.judge(0.55, "a") == gate.judge(0.55, "a")
    verdicts = [(g.judge(0.1, "a"), a.judge(0.1, "a")) for g, a in [(gate, again)] * 6]
    assert all(one == other for one, other in verdicts)


def probes(gate: Gate, tasks: int) -> list[int]:
    return [n for n in range(tasks) if gate.judge(0.3, "a").probe]


def test_after_ten_gated_results_in_a_row_one_is_submitted_as_a_probe() -> None:
    gate = Gate()
    assert probes(gate, 33) == [PROBE_AFTER, 2 * PROBE_AFTER + 1, 3 * PROBE_AFTER + 2]


def test_a_result_that_passes_starts_the_row_again() -> None:
    gate = Gate()
    assert probes(gate, PROBE_AFTER) == []
    assert gate.judge(0.7, "a").passed
    assert probes(gate, PROBE_AFTER) == []


def test_a_result_without_feedback_is_no_probe_and_does_not_count() -> None:
    gate = Gate()
    assert not any(gate.judge(0.3, "a", feedback=False).passed for _ in range(50))
    assert probes(gate, PROBE_AFTER) == []


def test_accepted_probes_follow_each_other_faster_until_every_result_is_submitted() -> None:
    gate = Gate()
    gaps = []
    for _ in range(6):
        gated = 0
        while not gate.judge(0.3, "a").probe:
            gated += 1
        gaps.append(gated)
        gate.observe(pair(0.3, True, probe=True))
    assert gaps == [10, 5, 2, 1, 0, 0]
    gate.observe(pair(0.3, False, probe=True))
    assert probes(gate, PROBE_AFTER + 1) == [PROBE_AFTER]


@pytest.mark.parametrize("bias", [-0.3, -0.1, 0.0, 0.1])
def test_a_wrong_scorer_does_not_keep_good_results_back_for_long(bias: float) -> None:
    """Every result is worth 0.75 to the validator; the scorer may say 0.45."""
    gate = Gate()
    sent = 0
    for _ in range(100):
        if (verdict := gate.judge(0.75 + bias, "a")).passed:
            sent += 1
            gate.observe(Pair(0.75 + bias, True, 0.75, 0.6, "a", verdict.probe))
    assert sent >= 78


@pytest.mark.parametrize("rate", [0.3, 0.42, 0.6])
@pytest.mark.parametrize(
    ("candidates", "error", "share"),
    [(1, 0.05, 0.95), (3, 0.05, 0.99), (1, 0.1, 0.86), (3, 0.1, 0.97)],
)
def test_submitting_from_one_half_on_earns_nearly_what_the_best_limit_would(
    rate: float, candidates: int, error: float, share: float
) -> None:
    """True scores are normal, and so is the scorer's error: P is 1/2 where the mean of the true
    score, given the own one, is the threshold."""
    draw, spread, threshold = np.random.default_rng(1), 0.12, 0.6
    mean = threshold - spread * NormalDist().inv_cdf(1.0 - rate)
    true = draw.normal(mean, spread, (100_000, candidates))
    own = true + draw.normal(0.0, error, true.shape)
    best = own.argmax(axis=1)[:, None]
    true, own = np.take_along_axis(true, best, 1)[:, 0], np.take_along_axis(own, best, 1)[:, 0]

    def earned(limit: float) -> float:
        """Accepted results in four hours."""
        accepted = ((own >= limit) & (true >= threshold)).mean()
        refused = ((own >= limit) & (true < threshold)).mean()
        return float(14_400.0 * accepted / (300.0 + 600.0 * refused))

    half = mean + (threshold - mean) * (1.0 + (error / spread) ** 2)
    assert earned(half) >= share * max(earned(limit) for limit in np.arange(0.4, 0.8, 0.005))
