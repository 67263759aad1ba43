"""Two plans of one task share what the first one made; the best of several candidates is kept."""

from pathlib import Path
from typing import Any

import pytest

from generation.errors import GenerationError
from generation.plan import Output
from generation.presets import preset
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.stage import Asset, StepContext
from protocol.tasks import Task, TextTask
from scripts.making.maker import Subject, best_of, once_for_each_task
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

    with pytest.raises(GenerationError, match="an empty cloud"):
        await best_of(subject(3), run)
