"""What the service decides, in which states, and what a request gets for an answer."""

import asyncio

import pytest

from miner.request import Caller
from protocol.tasks import ImageTask
from tests.miner.conftest import MakeBench
from tests.support.fakes import STAGES, FakeEngine, ball_spz, picture
from tests.support.service_bench import Bench
from tests.support.virtual_time import clock, in_virtual_time

TEXT_STEPS = ("prompt", *["denoise"] * 8, "decode", "cutout", "lift", "splats", "encode")


@in_virtual_time
async def test_a_request_is_answered_with_the_asset(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle()
    assert (answer.outcome, answer.reason_code, answer.task_id) == ("completed", "ok", "t")
    assert answer.asset == ball_spz()
    assert answer.gaussians == 8000
    assert answer.rung == "full"
    assert answer.timings["denoise"] == pytest.approx(8 * 0.3)
    assert tuple(answer.timings) == STAGES
    assert answer.validity is not None
    assert answer.validity.passed
    line = bench.answered()
    assert (line["outcome"], line["rung"], line["on_time"]) == ("completed", "full", True)
    assert (line["caller"], line["bytes"]) == ("5Validator", len(ball_spz()))
    assert tuple(stage for _, stage in bench.engine.ran) == TEXT_STEPS
    assert [event["rung"] for event in bench.events("admitted")] == ["full"]


@in_virtual_time
async def test_an_image_task_needs_no_picture_to_be_drawn(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(task=ImageTask(id="i", image=picture()))
    assert answer.outcome == "completed"
    assert tuple(answer.timings) == ("cutout", "lift", "splats", "encode")


@in_virtual_time
async def test_the_states_follow_each_other_and_are_logged(bench: Bench) -> None:
    assert bench.state == "starting"
    assert (await bench.handle("early")).reason_code == "not_ready"
    await bench.service.start()
    assert bench.state == "ready"
    await bench.service.drain()
    late = await bench.handle("late")
    assert (late.outcome, late.reason_code) == ("dropped", "draining")
    moves = [(event["previous"], event["state"]) for event in bench.events("state_changed")]
    assert moves == [
        ("starting", "warming_up"),
        ("warming_up", "ready"),
        ("ready", "draining"),
    ]
    assert bench.engine.ran == []


@in_virtual_time
async def test_the_caller_may_shorten_the_budget_but_not_lengthen_it(bench: Bench) -> None:
    await bench.service.start()
    short = await bench.handle("short", allowed_s=4.0)
    assert (short.outcome, short.reason_code) == ("dropped", "predicted_late")
    assert short.budget_s == pytest.approx(3.0, abs=0.3)  # Delivery takes the rest.
    long = await bench.handle("long", allowed_s=500.0)
    assert long.outcome == "completed"
    assert long.budget_s == pytest.approx(29.0, abs=0.3)


@in_virtual_time
async def test_the_answer_of_a_dropped_request_has_the_prediction(make_bench: MakeBench) -> None:
    bench = make_bench(budget_s=4.0)
    await bench.service.start()
    answer = await bench.handle()
    assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late")
    assert "steps" in answer.reason
    assert answer.reason.endswith("of 3.0 s")
    assert answer.predicted_s == pytest.approx(4.0)
    assert bench.engine.ran == []
    assert bench.events("admitted") == []


@in_virtual_time
async def test_time_lost_before_the_service_counts(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(received_at=clock() - 26.0)
    assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late")
    assert answer.total_s == pytest.approx(26.0)


@in_virtual_time
async def test_a_request_gets_a_lower_rung_before_it_is_dropped(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(allowed_s=6.2)
    assert (answer.outcome, answer.rung) == ("completed", "four_steps")
    assert [stage for _, stage in bench.engine.ran].count("denoise") == 4
    assert bench.answered()["rung"] == "four_steps"


@in_virtual_time
async def test_what_waits_ahead_is_part_of_the_prediction(bench: Bench) -> None:
    await bench.service.start()
    first = await bench.held("lift", "first")
    dropped = await bench.handle("second", allowed_s=5.5)
    assert dropped.reason_code == "predicted_late"
    bench.engine.release.set()
    assert (await first).outcome == "completed"
    assert (await bench.handle("third", allowed_s=5.5)).outcome == "completed"


@in_virtual_time
async def test_a_caller_that_leaves_frees_its_place_at_once(bench: Bench) -> None:
    bench.engine.takes_time = True
    await bench.service.start()
    waiting = [bench.ask(f"w{i}", caller=Caller(f"5{i}"), allowed_s=12.5) for i in range(4)]
    await asyncio.sleep(0.1)
    full = await bench.handle("full", allowed_s=12.5)
    assert full.reason_code == "predicted_late"
    for asking in waiting[1:]:
        asking.cancel()
    await asyncio.sleep(0)
    assert (await bench.handle("next", allowed_s=12.5)).outcome == "completed"
    assert (await waiting[0]).outcome == "completed"


@in_virtual_time
async def test_one_caller_cannot_book_the_whole_machine(bench: Bench) -> None:
    bench.engine.takes_time = True
    await bench.service.start()
    flood = [bench.ask(f"f{i}", caller=Caller("5Flood")) for i in range(20)]
    await asyncio.sleep(0.1)
    turned_away = [asking.result() for asking in flood if asking.done()]
    assert {answer.reason_code for answer in turned_away} == {"caller_share"}
    assert (await bench.handle("other", caller=Caller("5Other"))).outcome == "completed"
    await asyncio.gather(*flood)


@in_virtual_time
async def test_requests_that_are_not_ours_are_counted(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("lift")
    assert bench.service.active(except_transport="pull") == 1
    assert bench.service.active(except_transport="axon") == 0
    bench.engine.release.set()
    await asking
    assert bench.service.active(except_transport="pull") == 0


@in_virtual_time
async def test_draining_finishes_what_was_admitted(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("splats")
    draining = asyncio.create_task(bench.service.drain())
    await asyncio.sleep(0.01)
    assert (await bench.handle("new")).reason_code == "draining"
    assert not draining.done()
    bench.engine.release.set()
    await draining
    assert asking.done()
    assert asking.result().outcome == "completed"


@in_virtual_time
async def test_draining_ends_when_the_last_deadline_has_passed(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("splats", allowed_s=10.0)
    started = clock()
    await bench.service.drain()
    assert clock() - started == pytest.approx(9.0, abs=0.1)
    assert asking.result().reason_code == "deadline_passed"


@in_virtual_time
async def test_nothing_is_left_behind_by_a_caller_that_leaves(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("splats")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    bench.engine.release.set()
    await asyncio.sleep(0.01)
    await bench.service.close()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_closing_closes_every_engine_and_tells_if_a_thread_hangs(
    make_bench: MakeBench,
) -> None:
    engines = [FakeEngine(name="a"), FakeEngine(name="b")]
    bench = make_bench(*engines)
    await bench.service.start()
    engines[1].threads_end = False
    await bench.service.close()
    assert [engine.closed for engine in engines] == [True, True]
    assert bench.service.hung
