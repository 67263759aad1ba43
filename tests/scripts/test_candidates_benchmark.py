"""What gate and candidates promise to earn, in shorter runs of `scripts.benchmark candidates`."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import correlation, fmean

import pytest

from scripts import benchmark
from scripts.benchmarks.candidates import running
from scripts.benchmarks.candidates.simulation import (
    POLICIES,
    THRESHOLD,
    Policy,
    Result,
    Scores,
    World,
    simulate,
)

SEEDS = 8
ALWAYS, GATE, BEST_OF_2, BEST_OF_3, _ = POLICIES
BEST_OF_5 = Policy("best of 5", True, 5)


@cache
def runs(world: World, policy: Policy, seeds: int = SEEDS) -> tuple[Result, ...]:
    return tuple(simulate(world, policy, seed) for seed in range(seeds))


def accepted(world: World, policy: Policy) -> float:
    return fmean(run.accepted for run in runs(world, policy))


def test_with_a_scorer_that_errs_a_choice_earns_three_times_as_much_as_submitting() -> None:
    world = World(pass_rate=0.42, correlation=0.0, error=0.05)
    always = accepted(world, ALWAYS)
    assert 1.4 * always < accepted(world, GATE) < accepted(world, BEST_OF_2)
    assert accepted(world, BEST_OF_2) < accepted(world, BEST_OF_3) < accepted(world, BEST_OF_5)
    assert accepted(world, BEST_OF_3) >= 2.7 * always
    assert accepted(world, BEST_OF_5) >= 3.0 * always


def test_without_error_it_is_what_can_be_reckoned_by_hand() -> None:
    """At 0.42: 14,400 s / (0.42 * 300 s + 0.58 * 900 s) tasks, or one in 300 s."""
    world = World(error=0.0)
    assert accepted(world, ALWAYS) == pytest.approx(9.3, abs=2.5)
    assert accepted(world, GATE) == pytest.approx(20.0, abs=2.5)
    assert accepted(world, BEST_OF_3) == pytest.approx(38.6, abs=3.0)


def test_where_the_scorer_errs_much_gate_and_candidates_still_earn_more() -> None:
    world = World(pass_rate=0.3, correlation=0.5, error=0.1)
    assert accepted(world, ALWAYS) < accepted(world, GATE) < accepted(world, BEST_OF_3)


def test_every_result_is_judged_within_the_thirty_seconds_that_cost_nothing() -> None:
    for policy in POLICIES[:4]:
        assert max(run.slowest_s for run in runs(World(), policy)) < 30.0
    every = Policy("as many as fit", True, 200)
    slow = simulate(World(hours=1.0), every, 1, card_name="slow")
    assert slow.candidates > slow.accepted + slow.refused + slow.empty
    assert slow.slowest_s < 30.0


def test_several_validators_are_served_in_turn() -> None:
    four = runs(World(validators=4), GATE, 2)
    ratio = fmean(run.accepted for run in four) / accepted(World(), GATE)
    assert 3.0 < ratio < 5.0
    assert max(run.slowest_s for run in four) < 30.0


def test_a_scorer_that_says_too_much_is_found_out_in_a_day() -> None:
    assert simulate(World(bias=0.1, hours=24.0), GATE, 1).margin > 0.05


def test_a_seed_gives_the_same_run_again() -> None:
    policy = Policy("as many as fit", True, 200)
    one, two = (simulate(World(hours=2.0), policy, 3, card_name="slow") for _ in range(2))
    assert one == two


def test_scores_are_as_the_world_says() -> None:
    world = World(pass_rate=0.3, correlation=0.5, error=0.05, spread=0.1)
    scores = Scores(world, 3)
    tasks = [f"t{number}" for number in range(4000)]
    first, second = ([scores.true(task, n) for task in tasks] for n in (0, 1))
    errors = [scores.predicted(task, 0) - scores.true(task, 0) for task in tasks]
    assert fmean(score >= THRESHOLD for score in first) == pytest.approx(0.3, abs=0.02)
    assert correlation(first, second) == pytest.approx(0.5, abs=0.04)
    assert fmean(errors) == pytest.approx(0.0, abs=0.005)
    assert fmean(error**2 for error in errors) ** 0.5 == pytest.approx(0.05, abs=0.003)
    assert scores.true("t1", 0) == Scores(replace(world, error=0.2), 3).true("t1", 0)


def test_the_command_writes_table_figures_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(running, "PASS_RATES", (0.42,))
    monkeypatch.setattr(running, "CORRELATIONS", (0.0,))
    monkeypatch.setattr(running, "ERRORS", (0.0, 0.05))
    monkeypatch.setattr(running, "PLOTTED_ERRORS", ())
    monkeypatch.setattr(running, "POLICIES", POLICIES[:3])
    monkeypatch.setattr(running, "DEFAULT", BEST_OF_3)
    monkeypatch.setattr(running, "OTHERS", (("one hour", World(hours=1.0), "gpu80"),))
    out = tmp_path / "figures.json"
    arguments = ["candidates", "--seeds", "1", "--plots", str(tmp_path), "--json", str(out)]
    assert benchmark.main(arguments) == 0
    assert "accepted results" in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert len(figures["rows"]) == 2 * 3
    assert len(figures["others"]) == 4
    always = figures["rows"][0]
    assert (always["policy"], always["times_always"]) == ("always submit", None)
    assert (tmp_path / "candidates-earned.png").stat().st_size > 10_000
