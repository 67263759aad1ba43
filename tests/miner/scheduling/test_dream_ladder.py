"""The guard on DreamGaussian's ladder in `gpu24`: hundreds of slices, of which the last may be cut.

`ASSUMED` is what these tests assume of the machine; nobody has measured it as a whole.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from itertools import groupby, pairwise

import pytest

from generation.lift import stages_of
from generation.plan import StepEvent
from generation.presets import preset
from generation.settings import LiftSettings, ScoringSettings
from scripts.benchmarks.guard.policies import simulate
from scripts.benchmarks.guard.scenarios import PICTURE_SECONDS, SCENARIOS, Card, Truth, arrivals
from tests.support.fakes import Clock
from tests.support.ladders import gpu_seconds, request, scheduler_of

ASSUMED: Mapping[str, float] = {
    **PICTURE_SECONDS,
    "prepare": 0.002,
    "dream:early": 0.080,
    "dream:middle": 0.085,
    "dream:late": 0.100,
    "splats:dreamgaussian:120000": 0.020,
    "splats:dreamgaussian:60000": 0.015,
    "encode:120000": 0.015,
    "encode:60000": 0.008,
}
"""Seconds by cost key. Those of the picture are an H100's, the others are guesses."""

SETTINGS = preset("gpu24").model_copy(
    update={"scoring": ScoringSettings(), "lift": LiftSettings(backend="dreamgaussian")}
)
CARD = Card("assumed", ASSUMED, SETTINGS.ladder, stages_of(SETTINGS, "dreamgaussian"))
NAMES = ["full", "half", "quarter", "draft"]


make = partial(scheduler_of, CARD)


def test_no_slice_is_longer_than_the_time_that_another_request_may_wait_for_it() -> None:
    assert max(seconds for key, seconds in ASSUMED.items() if key.startswith("dream:")) <= 0.2
    for rung in CARD.ladder:
        assert rung.lift_slice == 2


def test_each_level_halves_the_iterations_and_the_best_fits_a_request() -> None:
    assert [(rung.name, rung.lift_steps) for rung in CARD.ladder] == [
        *(("full", 400), ("half", 200), ("quarter", 100), ("draft", 50))
    ]
    seconds = [gpu_seconds(CARD, rung) for rung in CARD.ladder]
    assert 15.0 < seconds[0] < 25.0
    assert all(lower < 0.6 * upper for upper, lower in pairwise(seconds))


def test_with_less_and_less_time_the_level_goes_down_one_by_one_before_a_drop() -> None:
    chosen: list[str | None] = []
    for tenths in range(290, 0, -10):
        _, verdict = make(Clock()).arrive(request(tenths, allowed_s=1.0 + tenths / 10.0))
        chosen.append(None if verdict.rung is None else CARD.ladder[verdict.rung].name)
    assert [name for name, _ in groupby(chosen)] == [*NAMES, None]


def test_a_late_slice_may_start_as_long_as_the_object_can_still_be_answered() -> None:
    """The required slices leave time for each other, and for no optional one."""
    scheduler = make(Clock())
    active, _ = scheduler.arrive(request(1))
    (dispatch,) = scheduler.next().dispatches
    latest = dict(zip(dispatch.plan.steps, dispatch.plan.latest_start, strict=True))
    dreams = [step for step in dispatch.plan.steps if step.stage == "dream"]
    required = [latest[step] for step in dreams if not step.optional]
    optional = [latest[step] for step in dreams if step.optional]
    assert (len(required), len(optional)) == (120, 80)
    assert required == sorted(required, reverse=True)
    after = ASSUMED["splats:dreamgaussian:120000"] + ASSUMED["encode:120000"]
    # One may take twice as long as predicted.
    slice_s = ASSUMED["dream:late"]
    assert 2 * slice_s + after < max(optional) == min(optional) < 3 * slice_s + after
    # So it is not given up where only optional ones are left and there is hardly any time.
    for position, step in enumerate(dispatch.plan.steps):
        if step.optional:
            break
        scheduler.on_event(active, StepEvent("started", position, step))
        ran_s = ASSUMED[step.cost_key]
        scheduler.on_event(active, StepEvent("finished", position, step, ran_s=ran_s))
    scheduler._clock.now += active.deadline - scheduler._clock() - 0.3  # type: ignore[attr-defined]
    assert scheduler.next().given_up == []


@pytest.mark.parametrize(
    ("scenario", "load", "least"),
    [("even", 0.5, 1.0), ("even", 2.0, 0.95), ("heavy tails", 1.0, 0.85), ("drift", 0.7, 0.85)],
)
def test_in_the_simulation_no_admitted_request_is_late_and_overload_costs_quality_first(
    scenario: str, load: float, least: float
) -> None:
    """Loads are multiples of what the machine does at the best level."""
    (chosen,) = (each for each in SCENARIOS if each.name == scenario)
    asked = arrivals(chosen, CARD, load, 40, 1)
    records = simulate("guard", chosen, CARD, asked, Truth(chosen, CARD, 1)).records
    assert not any(record.late or record.cut_off for record in records)
    accepted = sum(record.accepted for record in records)
    served = Counter(record.rung for record in records if record.on_time)
    assert accepted >= 0.9 * len(records)
    assert served.total() >= least * accepted
    if load == 2.0:
        assert len(served) == len(NAMES)
        assert served.total() > 1.5 * len(records) / load
