"""The warm-up visits what requests will meet, and times it when nothing is left to compile."""

import asyncio
import gc
import io
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from generation import process
from generation.engine import Engine
from generation.plan import Part
from generation.presets import preset
from generation.settings import GenerationSettings
from generation.stage import LARGE_PIXELS, StepContext
from generation.warm_up import count_steps, rounds_of
from protocol.errors import SetupError, TaskError
from protocol.images import read_size
from protocol.tasks import ImageTask, TextTask
from tests.support.fake_stages import FakeStages, task


@pytest.fixture
async def engine(fakes: FakeStages) -> AsyncIterator[Engine]:
    engine = fakes.engine(preset("gpu80"))
    yield engine
    assert await engine.close()


def _keys_of(engine: Engine) -> set[str]:
    """Every cost key that a request can meet."""
    small, large = (_picture(side) for side in (64, 2000))
    old = TextTask(id="x", prompt="an old prompt")
    keys = set()
    for rung in engine.ladder:
        for given in (task("new"), old, small, large):
            for output in engine.outputs:
                for part in get_args(Part):
                    keys |= {step.cost_key for step in engine.route(given, rung, output, part)}
    return keys


def _picture(side: int) -> ImageTask:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return ImageTask(id="i", image=file.getvalue())


def _drawing_together(name: str, batch: int) -> GenerationSettings:
    settings = preset(name)
    drawing = settings.text_to_image.model_copy(update={"batch": batch})
    return settings.model_copy(update={"text_to_image": drawing})


@pytest.mark.parametrize("name", ["gpu80", "gpu80-splat", "embedded"])
async def test_every_cost_key_of_the_ladder_is_timed(fakes: FakeStages, name: str) -> None:
    engine = fakes.engine(preset(name))
    seconds = await engine.warm_up()
    fakes.drawn.append("an old prompt")
    assert set(seconds) == _keys_of(engine)
    assert all(value >= 0 for value in seconds.values())
    assert await engine.close()


async def test_what_the_first_visit_costs_is_not_counted(fakes: FakeStages) -> None:
    """Every stage takes a minute when it first meets a shape, and then as long as it ought to."""
    now, seen = 0.0, set[tuple[str, int, int]]()
    cost = {"prompt": 1.0, "denoise": 2.0, "decode": 3.0, "cutout": 4.0, "lift": 5.0}
    cost |= {"splats": 6.0, "encode": 7.0, "mesh": 8.0, "score": 9.0, "rate": 10.0}

    def work(stage: str, context: StepContext) -> None:
        nonlocal now
        shape = (stage, context.rung.size, context.rung.gaussians)
        now += cost[stage] if shape in seen else 60.0
        seen.add(shape)

    fakes.on_call = work
    engine = fakes.engine(preset("gpu80"), clock=lambda: now)
    seconds = await engine.warm_up()
    assert {key: cost[key.partition(":")[0]] for key in seconds} == seconds
    assert await engine.close()


async def test_pictures_that_are_drawn_together_are_visited_at_the_best_rung(
    fakes: FakeStages,
) -> None:
    engine = fakes.engine(_drawing_together("gpu80", 4))
    seconds = await engine.warm_up()
    alone = _keys_of(engine)
    task = TextTask(id="t", prompt="p")
    group = engine.route(task, engine.ladder[0], part="picture", pictures=4)
    assert {step.cost_key for step in group if ":x4" in step.cost_key} == {
        "denoise:512:x4",
        "decode:512:x4",
        "cutout:drawn:x4",
        "rate:x4",
    }
    assert set(seconds) == alone | {step.cost_key for step in group} | {"prompt:remembered"}
    sizes = {len(context.seeds) for context in fakes.contexts}
    assert sizes == {0, 4}
    assert await engine.close()


async def test_prompts_are_new_even_in_a_second_warm_up(engine: Engine, fakes: FakeStages) -> None:
    first = await engine.warm_up()
    again = await engine.warm_up()
    assert set(again) == set(first)
    # Each round of a warm-up asks once for a prompt that it has just used.
    assert max(Counter(fakes.drawn).values()) == 2
    assert sum(count - 1 for count in Counter(fakes.drawn).values()) == 4


async def test_an_engine_that_remembers_nothing_has_a_prior_for_remembered_prompts(
    fakes: FakeStages,
) -> None:
    engine = fakes.engine(remembers=lambda prompt: False)
    seconds = await engine.warm_up()
    assert seconds["prompt:remembered"] == seconds["prompt:new"]
    assert await engine.close()


async def test_image_tasks_are_visited_small_and_large(engine: Engine, fakes: FakeStages) -> None:
    await engine.warm_up()
    sizes = Counter(
        (read_size(context.task.image)[0] ** 2 > LARGE_PIXELS, context.rung.skip_plain)
        for context in fakes.contexts
        if isinstance(context.task, ImageTask)
    )
    assert set(sizes) == set(itertools.product((False, True), (False, True)))


@pytest.mark.parametrize(("name", "times"), [("embedded", 1), ("gpu80", 2)])
async def test_a_warm_up_makes_one_mesh_and_one_before_if_it_compiles(
    fakes: FakeStages, name: str, times: int
) -> None:
    engine = fakes.engine(preset(name))
    seconds = await engine.warm_up()
    assert fakes.names().count("mesh") == times
    assert "mesh:triposr" in seconds
    assert await engine.close()


async def test_engines_of_one_process_warm_up_one_after_the_other() -> None:
    now: list[str] = []

    def engine(name: str) -> Engine:
        fakes = FakeStages()
        fakes.on_call = lambda stage, context: now.append(name)
        return fakes.engine()

    engines = engine("first"), engine("second")
    await asyncio.gather(*(engine.warm_up() for engine in engines))
    assert now == sorted(now)
    assert set(now) == {"first", "second"}
    for ended in [await engine.close() for engine in engines]:
        assert ended


async def test_what_was_loaded_is_frozen_until_the_last_engine_closes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_engines", 0)
    gc.unfreeze()  # What the engine of other tests has frozen.
    first, second = FakeStages().engine(), FakeStages().engine()
    await first.warm_up()
    frozen = gc.get_freeze_count()
    assert frozen > 10_000
    await second.warm_up()
    assert gc.get_freeze_count() <= frozen  # Nothing of the requests that run meanwhile is kept.
    assert await first.close()
    assert gc.get_freeze_count() > 10_000
    assert await second.close()
    assert gc.get_freeze_count() == 0


def test_rungs_that_cost_nothing_new_are_left_out() -> None:
    engine = FakeStages().engine(preset("gpu80"))
    compiled, timed = rounds_of(engine.ladder, engine.route, compiles=True)
    assert [rung.name for rung in timed] == ["full", "small", "draft"]
    assert compiled == timed
    eager, timed = rounds_of(engine.ladder, engine.route, compiles=False)
    assert [rung.name for rung in eager] == ["full"]
    assert [rung.name for rung in timed] == ["full", "small", "draft"]


@pytest.mark.parametrize(
    ("name", "batch"), [("gpu80", 1), ("gpu80", 4), ("gpu24-splat", 4), ("embedded", 1)]
)
async def test_the_progress_bar_ends_where_it_says(
    fakes: FakeStages, name: str, batch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = _drawing_together(name, batch)
    engine = fakes.engine(settings, progress=True)
    await engine.warm_up()
    total = count_steps(
        engine.ladder,
        engine.route,
        compiles=settings.accelerate,
        together=batch,
        meshes="mesh" in engine.outputs,
    )
    assert total == len(fakes.calls)
    assert f"/{total} [" in capsys.readouterr().err
    assert await engine.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            RuntimeError("broken"),
            "embedded failed its warm-up: cutout failed: RuntimeError: broken",
        ),
        (TaskError("no object"), "embedded failed its warm-up: no object"),
        (torch.AcceleratorError("CUDA error: 700"), "failed its warm-up: cutout lost the device"),
    ],
)
async def test_a_failing_warm_up_is_a_setup_error(
    fakes: FakeStages, error: Exception, message: str
) -> None:
    engine = fakes.engine()
    fakes.faults["cutout"] = error
    with pytest.raises(SetupError, match=message):
        await engine.warm_up()
    assert await engine.close()


async def test_missing_weights_stop_the_start(tmp_path: Path) -> None:
    settings = preset("gpu80").model_copy(update={"device": "cpu"})
    engine = Engine(settings, models_dir=tmp_path, progress=False)
    with pytest.raises(SetupError, match="has not been downloaded"):
        await engine.start()
    assert await engine.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
async def test_a_missing_device_stops_the_start(tmp_path: Path) -> None:
    engine = Engine(preset("gpu80"), models_dir=tmp_path, progress=False)
    with pytest.raises(SetupError, match=r"runs on cuda.*finds no CUDA device"):
        await engine.start()
    assert await engine.close()
