"""A step that runs past its limit: the service notices, waits, and at last goes on without it."""

import asyncio

import pytest

from generation.errors import EngineDead
from miner.request import Caller
from miner.scheduling.watchdog import LIMIT_FACTOR, LIMIT_FLOOR_S, RECOVERY_S
from protocol.errors import SetupError
from protocol.tasks import ImageTask
from tests.miner.conftest import MakeBench
from tests.support.fakes import SECONDS, FakeEngine, picture
from tests.support.service_bench import Bench
from tests.support.virtual_time import clock, in_virtual_time

OTHER = Caller("5Other")
MOST_LIMIT_S = 2 * LIMIT_FACTOR * SECONDS["lift"]
"""More than a step of any stage may run."""


async def until_suspect(bench: Bench) -> None:
    """Waits until a step is past its limit."""
    started = clock()
    while not bench.events("engine_suspect"):
        assert clock() - started < MOST_LIMIT_S
        await asyncio.sleep(0.1)


@in_virtual_time
async def test_a_hung_step_is_noticed_although_nothing_else_happens(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("splats")
    started = clock()
    await until_suspect(bench)
    assert clock() - started == pytest.approx(LIMIT_FACTOR * SECONDS["splats"], rel=0.4)
    assert clock() - started >= LIMIT_FLOOR_S
    assert bench.state == "suspect"
    (event,) = bench.events("engine_suspect")
    assert event["engine"] == "fake"
    assert event["reason"].startswith("splats runs for ")
    assert bench.events("state_changed")[-1]["reason"] == event["reason"]
    refused = await bench.handle("next", caller=OTHER)
    assert (refused.outcome, refused.reason_code) == ("dropped", "engine_suspect")
    bench.engine.release.set()
    await asking


@in_virtual_time
async def test_a_step_that_comes_back_makes_the_service_ready_again(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("splats")
    await until_suspect(bench)
    bench.engine.release.set()
    assert (await asking).outcome == "completed"
    assert bench.state == "ready"
    assert bench.states() == ["warming_up", "ready", "suspect", "ready"]
    assert [event["engine"] for event in bench.events("engine_back")] == ["fake"]
    bench.engine.hold_at = None
    assert (await bench.handle("next")).outcome == "completed"
    assert not bench.service.hung


@in_virtual_time
async def test_a_hung_step_is_watched_after_its_request_was_answered(bench: Bench) -> None:
    await bench.service.start()
    answer = await (await bench.held("splats", allowed_s=8.0))
    assert (answer.reason_code, answer.stage) == ("deadline_passed", "splats")
    assert bench.state == "suspect"
    bench.engine.release.set()
    await asyncio.sleep(0.01)
    assert bench.state == "ready"


@in_virtual_time
async def test_an_engine_that_does_not_come_back_is_lost_and_the_service_dies(
    bench: Bench,
) -> None:
    await bench.service.start()
    hung = await bench.held("splats", allowed_s=10.0)
    waiting = bench.ask("waits", caller=OTHER)
    await asyncio.sleep(0)
    started = clock()
    await bench.service.died.wait()
    assert RECOVERY_S < clock() - started < RECOVERY_S + MOST_LIMIT_S
    assert bench.service.hung
    assert bench.states() == ["warming_up", "ready", "suspect", "dead"]
    assert (await hung).reason_code == "deadline_passed"
    assert (await waiting).reason_code == "predicted_late_stage"
    assert ("waits", "prompt") not in bench.engine.ran
    assert (await bench.handle("late")).reason_code == "engine_dead"
    (lost,) = bench.events("engine_lost")
    assert "did not come back" in lost["reason"]
    await bench.service.drain()
    await bench.service.close()
    assert not bench.engine.closed  # Closing it would wait for the thread.


@in_virtual_time
async def test_what_an_engine_has_when_it_is_lost_is_answered(make_bench: MakeBench) -> None:
    bench = make_bench(budget_s=100.0)
    await bench.service.start()
    hung = await bench.held("splats")
    waiting = await bench.held("splats", "waits", caller=OTHER)
    await bench.service.died.wait()
    answers = await asyncio.gather(hung, waiting)
    assert [answer.reason_code for answer in answers] == ["engine_dead", "engine_dead"]
    assert all("splats runs for" in answer.reason for answer in answers)


@in_virtual_time
async def test_of_two_hung_steps_the_first_one_counts(make_bench: MakeBench) -> None:
    bench = make_bench(budget_s=100.0)
    await bench.service.start()
    first = await bench.held("encode")
    await asyncio.sleep(1.0)
    bench.engine.hold_at, bench.engine.held_task = "splats", "later"
    later = bench.ask("later", task=ImageTask(id="later", image=picture()), caller=OTHER)
    await bench.service.died.wait()
    assert len(bench.events("engine_suspect")) == 1
    assert "encode runs for" in bench.events("engine_lost")[0]["reason"]
    assert {answer.reason_code for answer in await asyncio.gather(first, later)} == {"engine_dead"}


@in_virtual_time
async def test_of_two_engines_the_other_goes_on(make_bench: MakeBench) -> None:
    first, second = FakeEngine(name="first"), FakeEngine(name="second")
    bench = make_bench(first, second)
    await bench.service.start()
    hung = await bench.held("lift", "hung", allowed_s=10.0)
    lost, other = (first, second) if first.holding.is_set() else (second, first)
    await until_suspect(bench)
    assert bench.state == "ready"
    assert (await bench.handle("while suspect", caller=OTHER)).outcome == "completed"
    await asyncio.sleep(RECOVERY_S + MOST_LIMIT_S)
    for event in ("engine_suspect", "engine_lost"):
        assert [line["engine"] for line in bench.events(event)] == [lost.name]
    assert bench.events("engine_back") == []
    assert (await bench.handle("after", caller=OTHER)).outcome == "completed"
    assert {task for task, _ in other.ran} == {"while suspect", "after"}
    assert bench.state == "ready"
    assert not bench.service.died.is_set()
    assert bench.service.hung  # The process can only end by force.
    assert (await hung).reason_code == "deadline_passed"


@in_virtual_time
async def test_a_request_on_a_lost_engine_does_not_wait_for_its_deadline(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(FakeEngine(name="first"), FakeEngine(name="second"), budget_s=100.0)
    await bench.service.start()
    answer = await (await bench.held("lift"))
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_dead")
    assert answer.total_s < RECOVERY_S + MOST_LIMIT_S
    assert bench.state == "ready"


@in_virtual_time
async def test_of_two_engines_one_may_die(make_bench: MakeBench) -> None:
    first, second = FakeEngine(name="first"), FakeEngine(name="second")
    bench = make_bench(first, second)
    await bench.service.start()
    for engine in (first, second):
        engine.error_at, engine.error = "lift", EngineDead("CUDA error 700")
    fatal = await bench.handle("fatal")
    assert (fatal.outcome, fatal.reason_code) == ("failed", "engine_dead")
    dead, other = (first, second) if first.ran else (second, first)
    other.error = None
    assert bench.state == "ready"
    assert (await bench.handle("next")).outcome == "completed"
    assert {task for task, _ in other.ran} == {"next"}
    await bench.service.close()
    assert dead.closed
    assert other.closed


@in_virtual_time
async def test_the_service_is_suspect_once_both_engines_are(make_bench: MakeBench) -> None:
    bench = make_bench(FakeEngine(name="first"), FakeEngine(name="second"))
    await bench.service.start()
    asking = [await bench.held("lift", "one"), await bench.held("lift", "two", caller=OTHER)]
    await asyncio.sleep(MOST_LIMIT_S)
    assert len(bench.events("engine_suspect")) == 2
    assert bench.state == "suspect"
    bench.engines[0].release.set()
    await asyncio.sleep(0.01)
    assert bench.state == "ready"
    bench.engines[1].release.set()
    assert [answer.outcome for answer in await asyncio.gather(*asking)] == ["completed"] * 2


class Broken(FakeEngine):
    """Has no weights."""

    async def start(self) -> None:
        raise SetupError("no weights", fix="python -m scripts.fetch_models")


@in_virtual_time
async def test_an_engine_that_does_not_start_is_none_to_count_on(make_bench: MakeBench) -> None:
    broken, good = Broken(name="broken"), FakeEngine(name="good")
    bench = make_bench(broken, good)
    await bench.service.start()
    assert any("broken does not start" in warning for warning in bench.warnings)
    assert (await bench.handle()).outcome == "completed"
    asking = await bench.held("splats", "hung", allowed_s=10.0)
    await until_suspect(bench)
    assert bench.state == "suspect"
    await bench.service.died.wait()
    assert (await asking).reason_code == "deadline_passed"
    await bench.service.close()
    assert broken.closed


@in_virtual_time
async def test_a_service_without_an_engine_does_not_start(make_bench: MakeBench) -> None:
    bench = make_bench(Broken(name="one"), Broken(name="two"))
    with pytest.raises(SetupError, match="no weights"):
        await bench.service.start()
    assert bench.state == "warming_up"
