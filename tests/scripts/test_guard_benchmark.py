"""The guard's promises in the simulation: shorter runs of `scripts.benchmark guard`."""

import json
from pathlib import Path

import pytest

from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.guard import Margins
from protocol.errors import SetupError
from scripts.benchmarks.guard import running
from scripts.benchmarks.guard.policies import POLICIES, simulate
from scripts.benchmarks.guard.recovery import CHANGES, recover
from scripts.benchmarks.guard.scenarios import SCENARIOS, Scenario, Truth, arrivals, card
from scripts.benchmarks.guard.simulation import Outcome

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


SEEDS = (1, 2, 3)
"""One run differs from the next by about 3 %; their sum does not."""


def simulated(
    policy: str, scenario: Scenario, name: str, load: float, requests: int = 1000, seed: int = 1
) -> tuple[running.Row, Outcome]:
    machine = card(name)
    asked = arrivals(scenario, machine, load, requests, seed)
    outcome = simulate(policy, scenario, machine, asked, Truth(scenario, machine, seed))
    return running.row(scenario, machine, load, policy, outcome), outcome


@pytest.mark.parametrize(
    ("scenario", "load", "requests", "least_of_perfect", "most_wasted"),
    [
        ("even", 3.0, 400, 0.95, 0.02),
        ("even, mixed deadlines", 3.0, 400, 0.95, 0.02),
        ("uneven", 1.0, 400, 0.90, 0.05),
        ("uneven", 3.0, 1000, 0.90, 0.05),
        ("uneven, mixed deadlines", 3.0, 1000, 0.90, 0.05),
        ("heavy tails", 1.5, 400, 0.85, 0.08),
        ("spikes", 1.0, 400, 0.85, 0.08),
    ],
)
def test_the_slow_card_serves_nearly_what_perfect_knowledge_would(
    scenario: str, load: float, requests: int, least_of_perfect: float, most_wasted: float
) -> None:
    case = (BY_NAME[scenario], "slow", load, requests)
    found = [simulated("guard", *case, seed)[0] for seed in SEEDS]
    perfect = [simulated("perfect", *case, seed)[0] for seed in SEEDS]
    assert total(found, "on_time") >= least_of_perfect * total(perfect, "on_time")
    assert total(found, "wasted_share") / len(SEEDS) <= most_wasted
    assert total(found, "late") <= 0.005 * total(found, "accepted")


def total(rows: list[running.Row], name: str) -> float:
    return float(sum(row[name] for row in rows))


@pytest.mark.parametrize("scenario", ["even", "uneven, mixed deadlines"])
def test_a_fast_card_serves_what_fits_at_a_lower_rung(scenario: str) -> None:
    found, _ = simulated("guard", BY_NAME[scenario], "gpu80", 1.5, requests=400)
    assert found["on_time"] >= 0.97 * found["asked"]
    assert found["late"] == 0


@pytest.mark.parametrize("scenario", ["prior 3 x too high", "prior 3 x too low"])
def test_a_wrong_warm_up_is_made_good_by_the_first_requests(scenario: str) -> None:
    found, _ = simulated("guard", BY_NAME[scenario], "slow", 0.7)
    assert found["on_time"] >= 0.95 * found["asked"]


def test_a_hang_costs_what_is_asked_until_the_engine_is_replaced_and_no_more() -> None:
    scenario = BY_NAME["hang"]
    found, outcome = simulated("guard", scenario, "slow", 0.7)
    assert found["late"] == 0
    assert found["on_time"] >= 0.9 * found["asked"]
    hung = [r for r in outcome.records if r.accepted and not r.on_time]
    assert 1 <= len(hung) <= 10


CANDIDATES = CandidateLimits(max=12, spend=0.8)


def with_and_without(
    scenario: Scenario, name: str, load: float, requests: int, seed: int
) -> tuple[Outcome, Outcome]:
    """The guard on a card that scores: without candidates, and with them."""
    machine = card(name, scored=True)
    asked = list(arrivals(scenario, machine, load, requests, seed))
    truth = Truth(scenario, machine, seed)
    return (
        simulate("guard", scenario, machine, asked, truth),
        simulate("guard", scenario, machine, asked, truth, candidates=CANDIDATES),
    )


@pytest.mark.parametrize("name", ["gpu80", "slow"])
@pytest.mark.parametrize("scenario", ["even, bursts", "uneven, mixed deadlines", "heavy tails"])
def test_candidates_make_nobody_late_and_cost_nobody_a_place(scenario: str, name: str) -> None:
    for load in (0.3, 1.5):
        without, with_them = with_and_without(BY_NAME[scenario], name, load, 100, 1)
        on_time = [sum(r.on_time for r in each.records) for each in (without, with_them)]
        late = [sum(r.late or r.cut_off for r in each.records) for each in (without, with_them)]
        assert on_time[1] >= 0.985 * on_time[0]
        assert late[1] <= late[0] + 1
        tried = [r.candidates for r in with_them.records if r.on_time]
        assert load > 1.0 or name == "slow" or sum(tried) > 1.5 * len(tried)


def test_a_newcomer_waits_for_one_running_step_of_a_candidate_at_most() -> None:
    without, with_them = with_and_without(BY_NAME["even"], "gpu80", 0.2, 150, 1)
    delays, busy_until = [], 0.0
    for mine, other in zip(with_them.records, without.records, strict=True):
        assert mine.first_at is not None
        assert other.first_at is not None
        # Requests that overlap delay each other in other ways, too.
        if mine.request.received_at >= busy_until:
            delays.append(mine.first_at - other.first_at)
        busy_until = max(busy_until, mine.first_at)
    medians = card("gpu80", scored=True).medians
    assert len(delays) > 80
    assert 0.0 < max(delays) <= 1.5 * max(medians.values())  # No noise reaches 1.5.
    assert max(r.candidates for r in with_them.records) == CANDIDATES.max


def test_perfect_knowledge_is_never_wrong_about_a_single_rung() -> None:
    found, _ = simulated("perfect", BY_NAME["uneven"], "slow, one rung", 1.5)
    assert found["accepted"] == found["on_time"] > 0


def test_every_policy_sees_the_same_requests_and_the_same_machine() -> None:
    rows = [simulated(policy, BY_NAME["uneven"], "slow", 1.0, 200)[0] for policy in POLICIES]
    assert len({row["asked"] for row in rows}) == 1
    by_policy = {row["policy"]: row for row in rows}
    assert by_policy["no guard"]["accepted"] == by_policy["no guard"]["asked"]
    assert by_policy["guard"]["on_time"] > by_policy["version 0.1.0"]["on_time"]
    assert by_policy["fixed queue"]["late"] > 0


def test_more_caution_wastes_less() -> None:
    machine, scenario = card("slow"), BY_NAME["uneven, mixed deadlines"]
    wasted = []
    for caution in (0.0, 3.0):
        margins = Margins(admit=caution, better=caution, dispatch=caution, start=0.0)
        asked = arrivals(scenario, machine, 1.5, 500, seed=1)
        truth = Truth(scenario, machine, seed=1)
        outcome = simulate("guard", scenario, machine, asked, truth, margins=margins)
        wasted.append(running.row(scenario, machine, 1.5, "guard", outcome)["wasted_share"])
    assert wasted[1] < 0.5 * wasted[0]


@pytest.mark.parametrize(("name", "slowdown", "lasts_s"), CHANGES)
def test_predictions_follow_a_changed_speed_within_20_requests_or_a_minute(
    name: str, slowdown: float, lasts_s: float | None
) -> None:
    found = recover(name, slowdown, lasts_s)
    if slowdown == 2.0:
        assert found["requests"] <= 20
    else:
        assert found["seconds"] <= 60.0


def test_the_benchmark_writes_rows_and_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "TRADE_OFF_SCENARIOS", ("even",))
    monkeypatch.setattr(running, "CAUTIONS", (0.0, 2.0))
    monkeypatch.setattr(running, "CHANGES", CHANGES[-1:])
    file = tmp_path / "rows.json"
    running.run(
        requests=100, scenarios=["even"], cards=["slow"], loads=[1.0], plots=tmp_path, out=file
    )
    figures = json.loads(file.read_text())
    assert [row["policy"] for row in figures["rows"]] == list(POLICIES)
    assert {"scenario", "load", "asked", "accepted", "on_time", "late", "stopped_half_way"} <= set(
        figures["rows"][0]
    )
    assert figures["rows"][-1]["on_time_of_perfect"] == 1.0
    assert len(figures["trade_off"]) == 2
    for name in ("guard-served.png", "guard-trade-off.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "perfect" in capsys.readouterr().out


def test_an_unknown_scenario_is_refused_with_the_names() -> None:
    with pytest.raises(SetupError, match="uneven, bursts"):
        running.run(scenarios=["evn"])
