"""One caller's flood leaves another caller's requests on time."""

import pytest

from scripts.benchmarks.guard.policies import simulate
from scripts.benchmarks.guard.scenarios import Scenario, Truth, arrivals, card
from scripts.benchmarks.guard.simulation import Record

FLOOD = Scenario("flood", callers={"flood": 10.0, "modest": 1.0})
PUNCTUAL = 0.99


def served(
    scenario: Scenario, name: str, load: float, requests: int, policy: str = "guard"
) -> dict[str, list[Record]]:
    """Runs a scenario and returns what became of each caller's requests."""
    machine, seed = card(name), 1
    asked = arrivals(scenario, machine, load, requests, seed)
    outcome = simulate(policy, scenario, machine, asked, Truth(scenario, machine, seed))
    by_caller: dict[str, list[Record]] = {caller: [] for caller in scenario.callers}
    for record in outcome.records:
        by_caller[record.request.caller.hotkey].append(record)
    return by_caller


def share_on_time(records: list[Record]) -> float:
    return sum(record.on_time for record in records) / len(records)


@pytest.mark.parametrize(
    ("name", "load", "requests"),
    [
        ("slow", 1.1, 800),
        ("slow", 1.5, 800),
        ("slow", 3.0, 1500),
        ("gpu80", 1.5, 400),
        ("gpu80", 3.0, 400),
    ],
)
def test_ten_times_the_traffic_leaves_another_caller_on_time(
    name: str, load: float, requests: int
) -> None:
    records = served(FLOOD, name, load, requests)
    assert len(records["modest"]) >= 30
    assert share_on_time(records["modest"]) >= PUNCTUAL
    # What is left over goes to the flood: the machine is not kept idle for the other one.
    done = sum(record.on_time for of in records.values() for record in of)
    assert done >= 0.9 * requests / load


def test_without_a_guard_the_flood_makes_the_other_caller_late() -> None:
    records = served(FLOOD, "slow", 3.0, 600, policy="no guard")
    assert share_on_time(records["modest"]) < 0.5


def test_callers_with_the_same_traffic_get_the_same() -> None:
    equal = Scenario("equal", callers={"a": 1.0, "b": 1.0, "c": 1.0})
    shares = [share_on_time(of) for of in served(equal, "slow", 3.0, 1200).values()]
    assert max(shares) - min(shares) < 0.1
    assert min(shares) > 0.5
