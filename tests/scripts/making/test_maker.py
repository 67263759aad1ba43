"""Two plans of one task share what the first one made; the best of several candidates is kept."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from generation.errors import EngineDead, GenerationError
from generation.plan import Output, Plan, Rung, Step, StepEvent
from generation.presets import preset
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.stage import Asset, StepContext
from generation.step_run import OnEvent, OnMade
from protocol.tasks import Task, TextTask
from scripts.making import maker
from scripts.making.maker import Choice, Subject, best_of, once_for_each_task
from tests.support.fake_stages import FakeStages
from tests.support.fakes import ball, ball_spz

RUNG = preset("embedded").ladder[0]


def test_a_step_runs_once_for_each_task() -> None:
    calls: list[tuple[str, int]] = []

    def denoise(value: Any, context: StepContext) -> Any:
        calls.append((context.task.id, context.index))
        return [value, context.task.id, context.index]

    once = once_for_each_task({"denoise": denoise})["denoise"]
    red, blue = (TextTask(id=name, prompt=name) for name in ("red", "blue"))
    first = once(0, StepContext(red, RUNG, 0))
    assert once(0, StepContext(red, RUNG, 0)) is first
    assert once(first, StepContext(red, RUNG, 1)) == [first, "red", 1]
    assert once(0, StepContext(blue, RUNG, 0)) == [0, "blue", 0]
    assert once(0, StepContext(red, RUNG, 0)) == first
    assert calls == [("red", 0), ("red", 1), ("blue", 0), ("red", 0)]


def subject(candidates: int) -> Subject:
    task = TextTask(id="t", prompt="a red car", seed=7)
    return Subject("a red car", task, [Path("car.glb")], candidates)


async def test_the_best_of_all_candidates_is_kept_with_its_seed() -> None:
    scores = iter((0.5, GenerationError("an empty cloud"), 0.875, 0.875, 0.25))
    seeds: list[int | None] = []

    async def run(task: Task, output: Output) -> Asset:
        seeds.append(task.seed)
        score = next(scores)
        if isinstance(score, Exception):
            raise score
        return Asset(ball(), ball_spz(), check(ball()), Score(score))

    task, asset, choice = await best_of(subject(5), run)
    assert seeds[0] == 7
    assert len(set(seeds)) == 5
    assert task.seed == choice.seed == seeds[2]  # The earlier one of two equals.
    assert (asset.score, choice.made, choice.first) == (Score(0.875), 4, 0.5)


async def test_a_prompt_is_given_up_only_if_no_candidate_can_be_made() -> None:
    async def run(task: Task, output: Output) -> Asset:
        raise GenerationError("an empty cloud")

    match = "none of 3 candidates could be made; the first: an empty cloud"
    with pytest.raises(GenerationError, match=match):
        await best_of(subject(3), run)


async def choose(*ends: float | Exception | None) -> tuple[Task, Asset, Choice]:
    """Chooses among candidates that have these scores, none, or cannot be made."""
    left = iter(ends)

    async def run(task: Task, output: Output) -> Asset:
        end = next(left)
        if isinstance(end, Exception):
            raise end
        return Asset(ball(), ball_spz(), check(ball()), None if end is None else Score(end))

    return await best_of(subject(len(ends)), run)


async def test_if_the_first_candidate_fails_the_others_count_and_no_score_is_called_the_first() -> (
    None
):
    task, asset, choice = await choose(GenerationError("an empty cloud"), 0.5, 0.75)
    assert (asset.score, choice.made, choice.failed, choice.first) == (Score(0.75), 2, 1, None)
    assert task.seed != 7


async def test_a_candidate_that_could_not_be_scored_is_kept_only_if_no_other_was() -> None:
    _, asset, choice = await choose(None, 0.0, None)
    assert (asset.score, choice.made, choice.first) == (Score(0.0), 3, None)
    task, asset, _ = await choose(None, None)
    assert (asset.score, task.seed) == (None, 7)


async def test_an_engine_that_dies_leaves_the_best_candidate_so_far() -> None:
    _, asset, choice = await choose(0.5, 0.75, EngineDead("the GPU is gone"), 0.9)
    assert (asset.score, choice.made, choice.failed) == (Score(0.75), 2, 2)
    with pytest.raises(EngineDead):
        await choose(EngineDead("the GPU is gone"), 0.9)


async def test_an_engine_that_dies_with_a_score_leaves_the_finished_object() -> None:
    fakes = FakeStages()
    fakes.faults["score"] = EngineDead("the GPU is gone")
    engine = fakes.engine(preset("embedded"))
    car = replace(subject(1), files=[Path("car.spz")])
    made, timings, _ = await maker._make(engine, car, car.files)
    assert made.asset is not None
    assert (made.asset.spz, made.asset.score, "encode" in timings) == (b"spz", None, True)
    with pytest.raises(EngineDead, match="the GPU is gone"):
        await maker._make(engine, car, car.files)
    assert await engine.close()


class FailingFirst:
    """An engine whose first plan fails in its second step."""

    ladder = (RUNG,)
    plans = 0

    def route(self, task: Task, rung: Rung, output: Output) -> tuple[Step, ...]:
        return tuple(Step(name, "cpu", name) for name in ("prompt", "decode", "lift", "score"))

    async def run(
        self, task: Task, plan: Plan, *, on_event: OnEvent, on_made: OnMade
    ) -> SimpleNamespace:
        self.plans += 1
        for position, step in enumerate(plan.steps):
            on_event(StepEvent("started", position, step))
            if self.plans == 1 and position == 1:
                on_event(StepEvent("failed", position, step))
                error = GenerationError("an empty cloud")
                error.timings = {"prompt": 0.5}
                raise error
            on_event(StepEvent("finished", position, step, ran_s=0.5))
        made = Asset(ball(), ball_spz(), check(ball()), Score(0.5))
        return SimpleNamespace(made=made, timings={step.stage: 0.5 for step in plan.steps})


async def test_the_progress_bar_ends_full_and_the_seconds_of_failed_candidates_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bars: list[tqdm[Any]] = []

    def shown(**options: Any) -> "tqdm[Any]":
        bars.append(tqdm(**{**options, "disable": False, "file": StringIO()}))
        return bars[-1]

    monkeypatch.setattr(maker, "tqdm", shown)
    three = replace(subject(3), files=[Path("car.spz")])
    _, timings, choice = await maker._make(FailingFirst(), three, three.files)  # type: ignore[arg-type]
    assert choice == Choice(choice.seed if choice else None, 2, 1, None)
    assert (bars[0].n, bars[0].total) == (12, 12)
    assert timings == {"prompt": 1.5, "decode": 1.0, "lift": 1.0, "score": 1.0}
