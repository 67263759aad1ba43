"""However a request ends, it has one answer and exactly one `answered` line that says the same."""

import asyncio
from typing import Any

import pytest

from generation.errors import EngineDead, GenerationError, NoObject, OutOfMemory
from generation.result import Generation
from miner.answering import in_words
from miner.request import Caller
from miner.scheduling.candidates import CandidateLimits
from protocol.errors import TaskError
from protocol.tasks import ImageTask
from tests.miner.conftest import MakeBench
from tests.support.fakes import FakeEngine, picture, stopped
from tests.support.service_bench import CALLER, Bench
from tests.support.virtual_time import clock, in_virtual_time


def ended(bench: Bench, answer: Any) -> tuple[str, str, str | None]:
    """Outcome, reason code and stage of an answer, which its one line has to repeat."""
    line = bench.answered(answer.task_id)
    end = (answer.outcome, answer.reason_code, answer.stage)
    assert (line["outcome"], line["reason_code"], line.get("stage")) == end
    assert (line["reason"], line.get("rung")) == (answer.reason, answer.rung)
    assert line["total_s"] == pytest.approx(answer.total_s, abs=1e-5)
    return end


@pytest.mark.parametrize(
    ("error", "end", "words"),
    [
        (GenerationError("the cloud is empty"), ("failed", "generation_error"), "cloud is empty"),
        (OutOfMemory("splats ran out of memory"), ("failed", "generation_error"), "out of memory"),
        (NoObject("nothing stands out"), ("failed", "generation_error"), "stands out"),
        (TaskError("image shows no object"), ("rejected", "bad_task"), "shows no object"),
        (ZeroDivisionError("oops"), ("failed", "internal_error"), "unexpected ZeroDivisionError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
@in_virtual_time
async def test_a_step_that_fails_is_an_answer_and_the_next_request_is_served(
    bench: Bench, error: Exception, end: tuple[str, str], words: str
) -> None:
    await bench.service.start()
    bench.engine.error_at, bench.engine.error = "splats", error
    answer = await bench.handle()
    assert ended(bench, answer) == (*end, "splats")
    assert words in answer.reason
    assert answer.timings["lift"] == pytest.approx(1.0)
    bench.engine.error = None
    assert ended(bench, await bench.handle("next")) == ("completed", "ok", None)


@in_virtual_time
async def test_a_picture_without_an_object_is_the_caller_s_fault(bench: Bench) -> None:
    await bench.service.start()
    bench.engine.error_at = "cutout"
    bench.engine.error = TaskError("no object stands out; send a picture of one object")
    answer = await bench.handle(task=ImageTask(id="i", image=picture()))
    assert ended(bench, answer) == ("rejected", "bad_task", "cutout")


@in_virtual_time
async def test_a_picture_that_cannot_be_read_is_rejected_on_arrival(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(task=ImageTask(id="i", image=picture()[:20]))
    assert ended(bench, answer) == ("rejected", "bad_task", None)
    assert bench.engine.ran == []


@in_virtual_time
async def test_dropped_on_arrival(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(allowed_s=1.5)
    assert ended(bench, answer) == ("dropped", "predicted_late", None)


@in_virtual_time
async def test_given_up_while_it_waits_for_the_engine(bench: Bench) -> None:
    await bench.service.start()
    first = await bench.held("decode", "first", allowed_s=9.5)
    waiting = bench.ask("waits", caller=Caller("5Other"), allowed_s=10.0)
    await asyncio.sleep(4.6)  # What is left then is too little for the second to be sure.
    bench.engine.release.set()
    answer = await waiting
    assert ended(bench, answer) == ("dropped", "predicted_late_stage", "prompt")
    assert answer.total_s == pytest.approx(4.6)
    assert ("waits", "prompt") not in bench.engine.ran
    await first


@in_virtual_time
async def test_at_its_latest_start_it_stops_waiting_for_the_engine(bench: Bench) -> None:
    await bench.service.start()
    first = await bench.held("decode", "first", allowed_s=9.5)
    answer = await bench.handle("waits", caller=Caller("5Other"), allowed_s=10.0)
    assert ended(bench, answer) == ("dropped", "predicted_late_stage", "prompt")
    assert answer.total_s == pytest.approx(5.0, abs=0.3)
    assert ("waits", "prompt") not in bench.engine.ran
    await first


@in_virtual_time
async def test_given_up_between_two_steps(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("cutout", allowed_s=8.0)
    await asyncio.sleep(6.0)
    bench.engine.release.set()
    answer = await asking
    assert ended(bench, answer) == ("dropped", "predicted_late_stage", "lift")
    await asyncio.sleep(0.1)
    assert ("t", "lift") not in bench.engine.ran


@in_virtual_time
async def test_stopped_by_the_engine(bench: Bench) -> None:
    await bench.service.start()
    bench.engine.error_at, bench.engine.error = "splats", stopped("splats")
    answer = await bench.handle()
    assert ended(bench, answer) == ("dropped", "predicted_late_stage", "splats")


@in_virtual_time
async def test_its_deadline_passes_while_a_step_hangs(bench: Bench) -> None:
    await bench.service.start()
    started = clock()
    answer = await (await bench.held("lift", allowed_s=10.0))
    assert ended(bench, answer) == ("dropped", "deadline_passed", "lift")
    assert clock() - started == pytest.approx(9.0, abs=0.01)


@in_virtual_time
async def test_its_deadline_passes_after_the_last_step(bench: Bench) -> None:
    await bench.service.start()
    answer = await (await bench.held("return", allowed_s=10.0))
    assert ended(bench, answer) == ("dropped", "deadline_passed", None)


@in_virtual_time
async def test_cancelled_by_its_caller_while_a_step_runs(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("lift")
    await asyncio.sleep(0.5)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    line = bench.answered()
    assert (line["outcome"], line["reason_code"]) == ("dropped", "caller_left")
    assert (line["rung"], line["total_s"]) == ("full", pytest.approx(0.5))
    bench.engine.release.set()
    await asyncio.sleep(0.1)
    assert ("t", "splats") not in bench.engine.ran
    bench.answered()


@in_virtual_time
async def test_cancelled_by_its_caller_while_it_waits(bench: Bench) -> None:
    await bench.service.start()
    first = await bench.held("prompt", "first")
    waiting = bench.ask("waits", caller=Caller("5Other"))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert bench.answered("waits")["reason_code"] == "caller_left"
    bench.engine.release.set()
    assert ended(bench, await first) == ("completed", "ok", None)
    assert ("waits", "prompt") not in bench.engine.ran


@in_virtual_time
async def test_the_engine_dies(bench: Bench) -> None:
    await bench.service.start()
    held = await bench.held("prompt", "held")
    waiting = bench.ask("waits", caller=Caller("5Other"))
    bench.engine.error_at, bench.engine.error = "splats", EngineDead("CUDA error 700")
    bench.engine.hold_at = None
    bench.engine.release.set()
    answers = await asyncio.gather(held, waiting)
    assert ended(bench, answers[0]) == ("failed", "engine_dead", "splats")
    assert ended(bench, answers[1])[:2] == ("failed", "engine_dead")
    assert bench.service.died.is_set()
    after = await bench.handle("after")
    assert ended(bench, after) == ("dropped", "engine_dead", None)
    assert "CUDA error 700" in after.reason
    await bench.service.drain()
    assert bench.states()[-1] == "dead"
    (lost,) = bench.events("engine_lost")
    assert (lost["engine"], lost["reason"]) == ("fake", "CUDA error 700")


@pytest.mark.parametrize("when", ["starting", "draining"])
@in_virtual_time
async def test_it_comes_before_the_service_is_ready_or_after(bench: Bench, when: str) -> None:
    code = "not_ready"
    if when == "draining":
        await bench.service.start()
        await bench.service.drain()
        code = "draining"
    assert ended(bench, await bench.handle()) == ("dropped", code, None)


@in_virtual_time
async def test_an_unusable_task_is_rejected(bench: Bench) -> None:
    answer = bench.service.reject(
        task_id="\x1b[2J",
        caller=CALLER,
        transport="axon",
        received_at=clock() - 0.5,
        reason="prompt is empty",
    )
    assert (answer.outcome, answer.total_s) == ("rejected", 0.5)
    (line,) = bench.events("answered")
    assert (line["task_id"], line["reason"]) == ("??2J", "prompt is empty")
    assert "kind" not in line


@pytest.mark.parametrize("broken", ["arrive", "next", "leave"])
@in_virtual_time
async def test_a_fault_of_our_own_is_an_answer(
    make_bench: MakeBench, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    bench = make_bench()
    await bench.service.start()

    def fail(*_: Any) -> Any:
        raise KeyError("nothing is known of the stage")

    with monkeypatch.context() as patch:
        patch.setattr(bench.service._scheduler, broken, fail)
        answer = await bench.handle()
    assert ended(bench, answer)[:2] == ("failed", "internal_error")
    assert answer.reason == "unexpected KeyError"


@in_virtual_time
async def test_every_admitted_request_has_its_line(bench: Bench) -> None:
    bench.engine.takes_time = True
    await bench.service.start()
    asking = [
        bench.ask(f"t{i}", caller=Caller(f"5{i % 5}"), allowed_s=3.0 + 2.3 * (i % 11))
        for i in range(40)
    ]
    await asyncio.sleep(1.0)
    for task in asking[::7]:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    lines = bench.events("answered")
    assert sorted(line["task_id"] for line in lines) == sorted(f"t{i}" for i in range(40))
    admitted = {event["request_id"] for event in bench.events("admitted")}
    assert admitted <= {line["request_id"] for line in lines}


@in_virtual_time
async def test_requests_that_were_to_start_on_an_engine_that_just_died_are_answered(
    make_bench: MakeBench,
) -> None:
    class DeadEngine(FakeEngine):
        async def run(self, *args: Any, **values: Any) -> Generation:
            raise EngineDead("the device is gone")

    bench = make_bench(DeadEngine())
    await bench.service.start()
    unexpected: list[Any] = []
    service: Any = bench.service
    running = service._run

    async def run(*args: Any) -> None:
        try:
            await running(*args)
        except Exception as error:
            unexpected.append(error)

    service._run = run
    image = ImageTask(id="i", image=picture())
    answers = await asyncio.gather(bench.handle("t"), bench.handle(task=image))
    assert [ended(bench, answer)[1] for answer in answers] == ["engine_dead"] * 2
    assert not unexpected


@in_virtual_time
async def test_what_candidates_take_is_neither_waiting_nor_a_stage(make_bench: MakeBench) -> None:
    engine = FakeEngine(worth=lambda task: 0.8 if task.seed else 0.3)
    engine.takes_time = True
    bench = make_bench(engine, candidates=CandidateLimits(max=3))
    await bench.service.start()
    answer = await bench.handle()
    assert (answer.first_score, answer.score and answer.score.value) == (0.3, 0.8)
    assert sum(answer.timings.values()) == pytest.approx(5.4)  # The steps of the first object.
    assert answer.candidates_s == pytest.approx(answer.total_s - 5.4)
    line = bench.answered()
    assert line["total_s"] - line["candidates_s"] == pytest.approx(sum(answer.timings.values()))
    assert line["queue_s"] == pytest.approx(0.0, abs=1e-6)
    told = in_words(answer, caller=CALLER, transport="axon", kind="text")
    assert (
        "; own score 0.800 (object 0.800) by fake, at first 0.300; 3 objects of 3 pictures in 5."
        in told
    )
    assert "gated" not in told


@in_virtual_time
async def test_the_operator_is_told_that_an_answer_is_gated(make_bench: MakeBench) -> None:
    bench = make_bench(FakeEngine(worth=lambda task: 0.3))
    await bench.service.start()
    answer = await bench.handle()
    assert ended(bench, answer) == ("completed", "below_threshold", None)
    told = in_words(answer, caller=CALLER, transport="axon", kind="text")
    assert "gated: its score 0.300 is below 0.600: threshold 0.6, margin +0.000" in told
