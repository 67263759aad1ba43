"""Steps run in order, each in its lane, timed without waiting, and every one is reported."""

import asyncio
import io
import itertools
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from generation.engine import Engine
from generation.plan import Plan, StepEvent
from generation.presets import preset
from protocol.tasks import ImageTask, TextTask
from tests.support.fake_stages import RUNG, STAGES, STEPS, FakeStages, plan, task


@pytest.fixture
async def engine(fakes: FakeStages) -> AsyncIterator[Engine]:
    engine = fakes.engine()
    yield engine
    assert await engine.close()


def _image_task() -> ImageTask:
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "PNG")
    return ImageTask(id="i", image=file.getvalue(), seed=5)


async def test_a_text_task_goes_through_every_step(engine: Engine, fakes: FakeStages) -> None:
    chair = TextTask(id="x\n1", prompt="a chair", seed=7)
    result = await engine.run(chair, plan(engine, chair))
    assert fakes.names() == list(STEPS)
    assert [context.index for context in fakes.contexts] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert {(context.task, context.rung) for context in fakes.contexts} == {(chair, RUNG)}
    assert tuple(result.timings) == STAGES
    assert all(seconds >= 0 for seconds in result.timings.values())
    assert fakes.drawn == ["a chair"]
    assert (result.task_id, result.rung, result.spz) == ("x\n1", "short", b"spz")
    assert result.cloud is fakes.result
    assert result.validity.passed
    assert (result.image.shape, result.cutout.shape) == ((8, 8, 3), (8, 8, 4))
    assert result.image.dtype == result.cutout.dtype == np.uint8


async def test_pictures_that_are_drawn_together_come_back_each_with_its_cut_out(
    fakes: FakeStages,
) -> None:
    engine = fakes.engine(preset("embedded"))
    steps = engine.route(task("x"), RUNG, part="picture", pictures=3)
    made = await engine.run(task("x"), Plan(RUNG, steps, seeds=(5, None, 7)))
    assert isinstance(made.made, tuple)
    assert [each and each.rating for each in made.made] == [fakes.worth] * 3
    assert {context.seeds for context in fakes.contexts} == {(5, None, 7)}
    assert made.seen is made.made[0]
    # One step of each serves all three.
    assert fakes.names() == ["prompt", "denoise", "denoise", "decode", "cutout", "rate"]
    assert await engine.close()


async def test_an_image_task_enters_at_the_cut_out(engine: Engine, fakes: FakeStages) -> None:
    given = _image_task()
    await engine.run(given, plan(engine, given))
    assert fakes.names() == ["cutout", "lift", "splats", "encode"]


async def test_a_picture_takes_as_many_steps_as_its_rung_has(
    engine: Engine, fakes: FakeStages
) -> None:
    for steps in (1, 5):
        await engine.run(task("x"), plan(engine, task("x"), replace(RUNG, steps=steps)))
    assert Counter(fakes.names())["denoise"] == 6


async def test_steps_run_in_their_lanes(engine: Engine, fakes: FakeStages) -> None:
    await engine.run(task("x"), plan(engine, task("x")))
    assert {stage: thread.split("_")[0] for stage, thread in fakes.calls} == {
        "prompt": "gpu",
        "denoise": "gpu",
        "decode": "gpu",
        "cutout": "cutout",
        "lift": "gpu",
        "splats": "gpu",
        "encode": "cpu",
    }
    assert engine.lanes == {"gpu": 1, "cutout": 1, "cpu": 2}


async def test_on_cuda_splats_are_made_beside_another_request(fakes: FakeStages) -> None:
    engine = fakes.engine(preset("gpu80"))
    assert engine.lanes == {"gpu": 1, "cutout": 1, "splats": 1, "cpu": 2, "score": 1}
    first, second = task("first"), task("second")
    finish_splats = fakes.hold("splats")
    older = asyncio.create_task(engine.run(first, plan(engine, first)))
    assert await asyncio.to_thread(fakes.entered["splats"].wait, 10)
    finish_lift = fakes.hold("lift")
    younger = asyncio.create_task(engine.run(second, plan(engine, second)))
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    assert not older.done()
    finish_lift()
    finish_splats()
    await asyncio.gather(older, younger)
    assert await engine.close()
    threads = {stage: thread.split("_")[0] for stage, thread in fakes.calls}
    assert threads["denoise"] == threads["lift"] == "gpu"
    assert threads["splats"] == "splats"


async def test_the_next_prompt_is_drawn_while_an_object_is_cut_out(
    engine: Engine, fakes: FakeStages
) -> None:
    release = fakes.hold("cutout")
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["cutout"].wait, 10)
    finish_drawing = fakes.hold("denoise")
    second = asyncio.create_task(engine.run(task("second"), plan(engine, task("second"))))
    assert await asyncio.to_thread(fakes.entered["denoise"].wait, 10)
    assert fakes.drawn == ["first", "second"]
    finish_drawing()
    release()
    await asyncio.gather(first, second)


async def test_a_request_with_a_later_deadline_waits_until_an_earlier_one_is_done(
    engine: Engine, fakes: FakeStages
) -> None:
    finish_lift = fakes.hold("lift")
    first = asyncio.create_task(
        engine.run(task("first"), plan(engine, task("first")), turn=(10.0, 1))
    )
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    # The second request waits when the first one asks for its next step on the device.
    second = asyncio.create_task(
        engine.run(task("second"), plan(engine, task("second")), turn=(20.0, 0))
    )
    await asyncio.sleep(0.01)
    finish_lift()
    await asyncio.gather(first, second)
    on_gpu = [stage for stage, thread in fakes.calls if thread.startswith("gpu")]
    assert on_gpu == ["prompt", "denoise", "denoise", "decode", "lift", "splats"] * 2


async def test_between_two_denoising_steps_a_more_urgent_request_may_go_first(
    engine: Engine, fakes: FakeStages
) -> None:
    release = fakes.hold("denoise")
    patient = asyncio.create_task(
        engine.run(task("patient"), plan(engine, task("patient")), turn=(20.0, 0))
    )
    assert await asyncio.to_thread(fakes.entered["denoise"].wait, 10)
    urgent = asyncio.create_task(
        engine.run(task("urgent"), plan(engine, task("urgent")), turn=(10.0, 1))
    )
    await asyncio.sleep(0.01)
    release()
    await asyncio.gather(patient, urgent)
    denoised = [
        c.task.id for c, s in zip(fakes.contexts, fakes.names(), strict=True) if s == "denoise"
    ]
    assert denoised == ["patient", "urgent", "urgent", "patient"]


@pytest.mark.parametrize("stage", ["prompt", "cutout"])
async def test_timings_leave_out_the_waiting(fakes: FakeStages, stage: str) -> None:
    ticks = itertools.count()
    engine = fakes.engine(clock=lambda: float(next(ticks)))
    release = fakes.hold(stage)
    events: list[StepEvent] = []
    arrived = asyncio.Event()
    before = [step.stage for step in plan(engine, task("second")).steps].index(stage)

    def on_event(event: StepEvent) -> None:
        events.append(event)
        if sum(event.kind == "finished" for event in events) == before:
            arrived.set()

    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered[stage].wait, 10)
    second = asyncio.create_task(
        engine.run(task("second"), plan(engine, task("second")), on_event=on_event)
    )
    if before:
        await arrived.wait()
    await asyncio.sleep(0.001)  # It waits for its lane now, outside what is timed.
    for _ in range(100):
        next(ticks)  # A hundred ticks pass while the second request waits.
    release()
    held, waited = await asyncio.gather(first, second)
    assert held.timings[stage] >= 100
    assert waited.timings[stage] < 20
    (end,) = (e for e in events if e.kind == "finished" and e.step.stage == stage)
    assert end.waited_s >= 100
    assert end.ran_s == waited.timings[stage]
    assert await engine.close()


async def test_timings_leave_out_what_the_loop_does_after_the_work(fakes: FakeStages) -> None:
    now, stamped = 0.0, threading.Event()

    def clock() -> float:
        if threading.current_thread() is not threading.main_thread():
            stamped.set()
        return now

    engine = fakes.engine(clock=clock)
    release = fakes.hold("prompt")
    request = asyncio.create_task(engine.run(task("x"), plan(engine, task("x"))))
    assert await asyncio.to_thread(fakes.entered["prompt"].wait, 10)
    release()
    assert stamped.wait(10)
    now = 100.0
    result = await request
    assert result.timings["prompt"] == 0.0
    assert await engine.close()


async def test_events_report_every_step_in_the_event_loop(engine: Engine) -> None:
    events: list[StepEvent] = []

    def listen(event: StepEvent) -> None:
        asyncio.get_running_loop()
        events.append(event)

    chosen = plan(engine, task("x"))
    result = await engine.run(task("x"), chosen, on_event=listen)
    assert [(event.kind, event.position, event.step) for event in events] == [
        (kind, position, step)
        for position, step in enumerate(chosen.steps)
        for kind in ("started", "finished")
    ]
    seconds: Counter[str] = Counter()
    for event in events:
        assert (event.error, event.retried) == ("", False)
        seconds[event.step.stage] += event.ran_s  # type: ignore[assignment]
    assert seconds == pytest.approx(result.timings)


async def test_a_listener_that_fails_costs_nothing_but_a_line_in_the_log(
    engine: Engine, log: list[str]
) -> None:
    def fail(event: StepEvent) -> None:
        raise LookupError("no such request")

    result = await engine.run(task("x"), plan(engine, task("x")), on_event=fail)
    assert result.spz == b"spz"
    assert len(log) == 2 * len(STEPS)
    assert all("LookupError: no such request" in line for line in log)


async def test_two_engines_of_one_process_work_at_the_same_time(fakes: FakeStages) -> None:
    others = FakeStages()
    engines = fakes.engine(), others.engine()
    releases = [stages.hold("denoise") for stages in (fakes, others)]
    runs = [asyncio.create_task(e.run(task("x"), plan(e, task("x")))) for e in engines]
    for stages in (fakes, others):
        assert await asyncio.to_thread(stages.entered["denoise"].wait, 10)
    for release in releases:
        release()
    results = await asyncio.gather(*runs)
    assert [result.spz for result in results] == [b"spz", b"spz"]
    assert await engines[0].close()
    # The one does not end with the other.
    again = await engines[1].run(task("x"), plan(engines[1], task("x")))
    assert again.spz == b"spz"
    assert await engines[1].close()


async def test_a_route_says_whether_the_prompt_is_remembered(fakes: FakeStages) -> None:
    engine = fakes.engine()
    fakes.drawn.append("old")
    keys = [engine.route(task(prompt), RUNG)[0].cost_key for prompt in ("old", "new", "old")]
    assert keys == ["prompt:remembered", "prompt:new", "prompt:remembered"]
    assert await engine.close()


async def test_a_plan_that_makes_no_asset_is_a_mistake_of_the_program(engine: Engine) -> None:
    whole = plan(engine, task("x"))
    with pytest.raises(ValueError, match="makes no asset"):
        await engine.run(task("x"), replace(whole, steps=whole.steps[:-1]))


async def test_without_limits_a_request_waits_for_ever(engine: Engine, fakes: FakeStages) -> None:
    release = fakes.hold("prompt")
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["prompt"].wait, 10)
    chosen = plan(engine, task("second"), latest_start=(0.0,) * len(STEPS))
    second = asyncio.create_task(engine.run(task("second"), chosen, seconds_left=math.inf))
    await asyncio.sleep(0.01)
    release()
    assert len(await asyncio.gather(first, second)) == 2
