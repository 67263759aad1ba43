"""What goes wrong in a step ends that request, or the engine, and never silently."""

import asyncio
import ctypes
import threading
from collections.abc import AsyncIterator

import pytest
import torch

from generation.engine import Engine
from generation.errors import EngineDead, GenerationError
from generation.plan import StepEvent
from generation.presets import preset
from generation.result import Generation
from protocol.errors import CodecError, SetupError, TaskError
from tests.support.fake_stages import STAGES, FakeStages, cloud, plan, task

DEVICE_ASSERT = RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might")
ACCELERATOR = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.fixture
async def engine(fakes: FakeStages) -> AsyncIterator[Engine]:
    engine = fakes.engine()
    yield engine
    assert await engine.close()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GenerationError("no surface"), "no surface"),
        (ValueError("bad shape"), "splats failed: ValueError: bad shape"),
        (CodecError("too large"), "splats failed: CodecError: too large"),
        (RuntimeError("mat1 and mat2\nshapes"), "splats failed: RuntimeError: mat1 and mat2"),
        (torch.OutOfMemoryError("tried to allocate 2 GiB"), "splats ran out of memory"),
        (MemoryError(), "splats ran out of memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "splats ran out of memory"),
        (RuntimeError("CUDA error: out of memory"), "splats ran out of memory"),
    ],
)
async def test_an_error_in_a_step_fails_that_request_alone(
    engine: Engine, fakes: FakeStages, error: Exception, message: str
) -> None:
    events: list[StepEvent] = []
    fakes.faults["splats"] = error
    with pytest.raises(GenerationError) as caught:
        await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert list(caught.value.timings) == ["prompt", "denoise", "decode", "cutout", "lift"]
    failed = events[-1]
    assert (failed.kind, failed.step.stage, failed.error) == ("failed", "splats", str(caught.value))
    assert failed.ran_s > 0
    del fakes.faults["splats"]
    assert (await engine.run(task("next"), plan(engine, task("next")))).spz == b"spz"


async def test_a_score_that_fails_leaves_the_asset_without_one(fakes: FakeStages) -> None:
    engine, events = fakes.engine(preset("embedded")), list[StepEvent]()
    fakes.faults["score"] = torch.OutOfMemoryError("tried to allocate 2 GiB")
    made = await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert (made.spz, made.score) == (b"spz", None)
    assert "score" not in made.timings
    assert (events[-1].kind, events[-1].step.stage) == ("failed", "score")
    assert events[-1].retried
    del fakes.faults["score"]
    assert (await engine.run(task("next"), plan(engine, task("next")))).score is not None
    assert await engine.close()


async def test_a_device_that_is_lost_while_it_scores_ends_the_engine(fakes: FakeStages) -> None:
    engine = fakes.engine(preset("embedded"))
    fakes.faults["score"] = DEVICE_ASSERT
    made: list[Generation] = []
    with pytest.raises(EngineDead, match="score lost the device"):
        await engine.run(task("x"), plan(engine, task("x")), on_made=made.append)
    (unscored,) = made
    assert (unscored.spz, unscored.score, list(unscored.timings)) == (b"spz", None, list(STAGES))
    assert await engine.close()


async def test_a_scorer_that_fails_in_the_warm_up_ends_the_start(fakes: FakeStages) -> None:
    engine = fakes.engine(preset("embedded"))
    fakes.faults["score"] = ValueError("bad shape")
    with pytest.raises(SetupError, match="score failed: ValueError: bad shape"):
        await engine.warm_up()
    assert await engine.close()


async def test_a_task_that_cannot_be_served_is_its_callers_fault(
    engine: Engine, fakes: FakeStages
) -> None:
    events: list[StepEvent] = []
    fakes.faults["cutout"] = TaskError("no object was found")
    with pytest.raises(TaskError, match="no object was found"):
        await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert (events[-1].kind, events[-1].error) == ("failed", "no object was found")


@pytest.mark.parametrize("error", [DEVICE_ASSERT, ACCELERATOR, EngineDead("lift lost the device")])
async def test_a_lost_device_ends_the_engine(
    engine: Engine, fakes: FakeStages, error: Exception
) -> None:
    fakes.faults["lift"] = error
    with pytest.raises(EngineDead, match="lift lost the device") as caught:
        await engine.run(task("first"), plan(engine, task("first")))
    assert "cutout" in caught.value.timings
    del fakes.faults["lift"]
    before, events = len(fakes.calls), list[StepEvent]()
    with pytest.raises(EngineDead, match="lift lost the device"):
        await engine.run(task("next"), plan(engine, task("next")), on_event=events.append)
    assert len(fakes.calls) == before
    assert [(event.kind, event.error) for event in events] == [("skipped", str(caught.value))]


async def test_requests_that_wait_learn_that_the_engine_is_dead(
    engine: Engine, fakes: FakeStages
) -> None:
    fakes.faults["lift"], release = DEVICE_ASSERT, fakes.hold("lift")
    first = asyncio.create_task(engine.run(task("first"), plan(engine, task("first"))))
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    waits = asyncio.create_task(engine.run(task("waits"), plan(engine, task("waits"))))
    await asyncio.sleep(0.01)
    release()
    for request in (first, waits):
        with pytest.raises(EngineDead, match="lift lost the device"):
            await request
    assert fakes.drawn == ["first"]


async def test_the_engine_is_dead_though_the_caller_has_left(
    engine: Engine, fakes: FakeStages
) -> None:
    fakes.faults["lift"], release = DEVICE_ASSERT, fakes.hold("lift")
    request = asyncio.create_task(engine.run(task("x"), plan(engine, task("x"))))
    assert await asyncio.to_thread(fakes.entered["lift"].wait, 10)
    request.cancel()
    release()
    with pytest.raises(EngineDead):
        await engine.run(task("next"), plan(engine, task("next")))


async def test_a_system_exit_in_a_step_ends_the_engine_and_not_its_thread(
    engine: Engine, fakes: FakeStages
) -> None:
    events: list[StepEvent] = []
    fakes.faults["cutout"] = SystemExit(1)
    with pytest.raises(EngineDead, match="SystemExit in thread cutout_0"):
        await engine.run(task("x"), plan(engine, task("x")), on_event=events.append)
    assert (events[-1].kind, events[-1].step.stage) == ("failed", "cutout")
    with pytest.raises(EngineDead, match="SystemExit in thread cutout_0"):
        await engine.run(task("next"), plan(engine, task("next")))


class _Killed(BaseException):
    """What a test throws into a thread from outside."""


async def test_a_killed_thread_ends_the_engine_and_keeps_nobody_waiting(
    engine: Engine, fakes: FakeStages
) -> None:
    idents: list[int] = []
    fakes.on_call = lambda stage, context: idents.append(threading.get_ident())
    await engine.run(task("x"), plan(engine, task("x")))
    gpu_thread = ctypes.c_ulong(idents[0])
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(gpu_thread, ctypes.py_object(_Killed)) == 1
    events: list[StepEvent] = []
    with pytest.raises(EngineDead, match="thread gpu_0 ended: _Killed"):
        await engine.run(task("next"), plan(engine, task("next")), on_event=events.append)
    assert [event.kind for event in events] == ["started", "failed"]
    with pytest.raises(EngineDead, match="thread gpu_0 ended: _Killed"):
        await engine.run(task("later"), plan(engine, task("later")))


async def test_an_unexpected_error_is_logged_with_its_traceback(
    engine: Engine, fakes: FakeStages, log: list[str]
) -> None:
    fakes.faults["cutout"] = ZeroDivisionError("division by zero")
    with pytest.raises(GenerationError):
        await engine.run(task("x"), plan(engine, task("x")))
    (line,) = [line for line in log if line.startswith("ERROR")]
    assert "Traceback" in line
    assert "fake_stages.py" in line


async def test_a_cloud_that_scores_zero_is_not_answered(engine: Engine, fakes: FakeStages) -> None:
    fakes.result = cloud(6_999)
    with pytest.raises(GenerationError, match=r"score the cloud 0.*gaussians is 6999 .*7000"):
        await engine.run(task("x"), plan(engine, task("x")))


async def test_running_before_the_start_is_a_mistake_of_the_program(fakes: FakeStages) -> None:
    engine = Engine(fakes.engine().settings)
    with pytest.raises(RuntimeError, match="before start"):
        await engine.run(task("x"), plan(engine, task("x")))
    assert await engine.close()
