"""The guard on the ladder of `gpu24-splat`: many long steps in one lane, four quality levels."""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import groupby

import pytest

from generation.lift import stages_of
from generation.presets import preset
from generation.settings import ScoringSettings
from miner.request import ActiveRequest
from scripts.benchmarks.guard.policies import simulate
from scripts.benchmarks.guard.scenarios import PICTURE_SECONDS, SCENARIOS, Card, Truth, arrivals
from tests.support.fakes import Clock
from tests.support.ladders import gpu_seconds, request, scheduler_of

COSTS: Mapping[str, float] = {
    **PICTURE_SECONDS,
    "prepare": 0.123,
    "features": 0.047,
    "flow": 0.092,
    "gaussians:262144": 0.056,
    "gaussians:131072": 0.034,
    "gaussians:65536": 0.025,
    "gaussians:60000": 0.025,
    "splats:triposplat:262144": 0.002,
    "splats:triposplat:131072": 0.003,
    "splats:triposplat:65536": 0.004,
    "splats:triposplat:60000": 0.004,
    "encode:262144": 0.011,
    "encode:131072": 0.006,
    "encode:65536": 0.004,
    "encode:60000": 0.004,
}
"""Seconds by cost key, as an H100 took the parts alone, before pictures were prepared faster
(docs/performance.md); 60,000 Gaussians have those of 65,536."""

SETTINGS = preset("gpu24-splat").model_copy(update={"scoring": ScoringSettings()})
CARD = Card("H100", COSTS, SETTINGS.ladder, stages_of(SETTINGS, "triposplat"))
FULL, HALF, QUARTER, DRAFT = range(4)


make = partial(scheduler_of, CARD)


def test_the_levels_differ_in_their_steps_in_3d_and_each_is_much_quicker_than_the_one_above() -> (
    None
):
    assert [(rung.name, rung.lift_steps) for rung in CARD.ladder] == [
        *(("full", 20), ("half", 10), ("quarter", 6), ("draft", 6))
    ]
    counts = [
        Counter(step.stage for step in CARD.steps(request(0), rung))["flow"] for rung in CARD.ladder
    ]
    assert counts == [20, 10, 6, 6]
    full, half, quarter, draft = (gpu_seconds(CARD, rung) for rung in CARD.ladder)
    assert half < 0.6 * full
    assert quarter < 0.7 * half
    assert draft < quarter


def test_with_less_and_less_time_the_level_goes_down_one_by_one_before_a_drop() -> None:
    chosen: list[str | None] = []
    for tenths in range(60, 0, -1):
        _, verdict = make(Clock()).arrive(request(tenths, allowed_s=1.0 + tenths / 10.0))
        chosen.append(None if verdict.rung is None else CARD.ladder[verdict.rung].name)
    assert [name for name, _ in groupby(chosen)] == ["full", "half", "quarter", "draft", None]


def test_a_queue_goes_down_the_ladder_and_is_dropped_from_only_when_the_lowest_does_not_fit() -> (
    None
):
    scheduler = make(Clock())
    admitted: list[ActiveRequest] = []
    second: list[int] = []
    for number in range(100):
        active, verdict = scheduler.arrive(request(number))
        if verdict.rung is None:
            break
        admitted.append(active)
        assert scheduler.next().given_up == []
        second += [each.rung for each in admitted[1:2]]
    assert verdict.reason_code == "predicted_late"
    assert [rung for rung, _ in groupby(second)] == [FULL, HALF, QUARTER, DRAFT]
    running, *waiting = admitted
    assert running.rung == FULL  # What runs is not made worse.
    assert min(active.rung for active in waiting) >= QUARTER
    # At the lowest level of all, the lane's seconds end within what delivery and margins take.
    full, draft = (gpu_seconds(CARD, CARD.ladder[rung]) for rung in (FULL, DRAFT))
    lowest = full + (len(waiting) + 1) * draft
    assert 27.0 < lowest < 30.0


@pytest.mark.parametrize("load", [0.5, 2.0])
def test_in_the_simulation_no_admitted_request_is_late_and_overload_costs_quality_first(
    load: float,
) -> None:
    """Loads are multiples of what the machine does at the best level."""
    scenario, count = SCENARIOS[0], 100
    asked = arrivals(scenario, CARD, load, count, 1)
    records = simulate("guard", scenario, CARD, asked, Truth(scenario, CARD, 1)).records
    assert not any(record.late for record in records)
    served = Counter(record.rung for record in records if record.on_time)
    if load < 1.0:
        assert served == {FULL: count}
        return
    assert set(served) == {FULL, HALF, QUARTER, DRAFT}
    assert served.total() > 1.5 * count / load
