"""Several engines, some in processes of their own: which one is chosen, lost, started again."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from generation.errors import EngineDead
from generation.plan import StepEvent
from generation.result import Generation
from miner.engines import EngineClient
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.restarts import FIRST_PAUSE_S, HOPELESS
from protocol.errors import SetupError
from protocol.tasks import TextTask
from tests.miner.conftest import MakeBench
from tests.support.fakes import SECONDS, FakeEngine
from tests.support.far_engines import MortalEngine
from tests.support.several_engines import GONE, all_up, asked, codes, one_line_each, two
from tests.support.virtual_time import clock, in_virtual_time


def monitor(engine: MortalEngine, reports: list[Callable[[StepEvent], None]]) -> None:
    """Collects what every run of an engine reports its steps to."""
    run = engine.run

    async def monitored(*args: Any, **values: Any) -> Generation:
        reports.append(values["on_event"])
        return await run(*args, **values)

    engine.run = monitored  # type: ignore[method-assign]


@in_virtual_time
async def test_what_a_lost_process_had_is_placed_again_and_answered_once(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    asking = await asked(bench, 4)
    await asyncio.sleep(1.0)
    had = {plan for plan, _ in one.ran}
    assert had
    one.die()
    answers = await asyncio.gather(*asking)
    assert codes(answers) == ["ok"] * 4
    assert one_line_each(bench, 4)
    for answer in answers:
        assert (answer.lost_engine == "one") == (answer.task_id in had)
    assert {answer.engine for answer in answers if answer.lost_engine} == {"two"}
    assert had <= {task for task, _ in two_.ran}
    (lost,) = bench.events("engine_lost")
    assert (lost["engine"], lost["reason"]) == ("one", "killed")
    logged = {line["task_id"] for line in bench.events("answered") if line.get("lost_engine")}
    assert logged == had


@in_virtual_time
async def test_what_a_lost_engine_still_reports_counts_no_more(make_bench: MakeBench) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    reports: list[Callable[[StepEvent], None]] = []
    for engine in (one, two_):
        monitor(engine, reports)
    (asking,) = await asked(bench, 1)
    first, second = (one, two_) if one.ran else (two_, one)
    await asyncio.sleep(1.0)
    first.die()
    await asyncio.sleep(0.5)
    assert (len(reports), len(second.ran) > 0) == (2, True)
    step = first.route(TextTask(id="0", prompt="a red car"), first.ladder[0])[-1]
    reports[0](StepEvent("started", 3, step))
    reports[0](StepEvent("failed", 3, step, ran_s=100.0, fatal=True, error="CUDA error 700"))
    answer = await asking
    assert (answer.outcome, answer.engine) == ("completed", second.name)
    assert answer.timings[step.stage] < 100.0
    assert [line["engine"] for line in bench.events("engine_lost")] == [first.name]


@in_virtual_time
async def test_a_request_is_placed_again_only_once(make_bench: MakeBench) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    first, second = (one, two_) if one.ran else (two_, one)
    first.die()
    await asyncio.sleep(0.5)
    assert second.ran
    second.die()
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_lost")
    assert answer.reason == f"engine {second.name} was lost with it: killed"
    assert one_line_each(bench, 1)


@in_virtual_time
async def test_a_request_without_time_for_a_second_attempt_fails_with_engine_lost(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench, candidates=None)
    await all_up(bench)
    asking = bench.ask("0", allowed_s=6.5)
    await asyncio.sleep(sum(SECONDS.values()) * 0.5)
    (one if one.ran else two_).die()
    began = clock()
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_lost")
    assert clock() - began < 1.0
    assert one_line_each(bench, 1)


@in_virtual_time
async def test_a_request_that_waits_for_the_restart_in_vain_fails_with_engine_lost(
    make_bench: MakeBench,
) -> None:
    engine = MortalEngine("only")
    bench = make_bench(engine)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    engine.refusal = GONE
    engine.die()
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_lost")
    assert answer.reason.startswith("engine only was lost, and then ")
    assert one_line_each(bench, 1)


@in_virtual_time
async def test_a_request_of_the_only_engine_waits_for_its_restart(make_bench: MakeBench) -> None:
    engine = MortalEngine("only")
    bench = make_bench(engine)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    engine.die()
    await asyncio.sleep(0.1)
    assert bench.state == "suspect"
    refused = await bench.handle("meanwhile")
    assert (refused.outcome, refused.reason_code) == ("dropped", "engine_suspect")
    answer = await asking
    assert (answer.outcome, answer.engine, answer.lost_engine) == ("completed", "only", "only")
    assert bench.states() == ["warming_up", "ready", "suspect", "ready"]
    (restarted,) = bench.events("engine_restarted")
    assert restarted["seconds"] == pytest.approx(FIRST_PAUSE_S + engine.start_s, abs=0.2)


@in_virtual_time
async def test_the_step_that_kills_its_engine_is_not_tried_on_the_next_one(
    make_bench: MakeBench,
) -> None:
    bench, engines = two(make_bench)
    await all_up(bench)
    for engine in engines:
        engine.error_at, engine.error = "lift", EngineDead("CUDA error 700")
        engine.held_task = "0"
    (asking,) = await asked(bench, 1)
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_dead")
    assert sum(bool(engine.ran) for engine in engines) == 1
    for engine in engines:
        engine.error = None
    await asyncio.sleep(5.0)
    assert [engine.up for engine in bench.service.snapshot().engines] == [True, True]


@in_virtual_time
async def test_an_engine_that_does_not_come_back_is_tried_for_as_long_as_another_serves(
    make_bench: MakeBench,
) -> None:
    bench, (one, _two) = two(make_bench)
    await all_up(bench)
    one.refusal = GONE
    one.die()
    await asyncio.sleep(3600.0)
    assert bench.state == "ready"
    assert (await bench.handle("0")).outcome == "completed"
    one.refusal = None
    await asyncio.sleep(70.0)
    assert one.starts == 2
    assert all(engine.up for engine in bench.service.snapshot().engines)


@in_virtual_time
async def test_the_miner_ends_once_no_engine_serves_and_none_can_come_back(
    make_bench: MakeBench,
) -> None:
    bench, engines = two(make_bench)
    await all_up(bench)
    for engine in engines:
        engine.refusal = GONE
        engine.die()
    began = clock()
    await asyncio.sleep(5.0)
    assert not bench.service.died.is_set()
    await bench.service.died.wait()
    assert clock() - began < sum(2.0**n for n in range(HOPELESS + 1)) + 10.0
    assert bench.states()[-1] == "dead"
    assert (await bench.handle("late")).reason_code == "engine_dead"
    await bench.service.close()


@in_virtual_time
async def test_it_is_ready_once_one_engine_is_and_the_others_join(make_bench: MakeBench) -> None:
    bench, (_one, two_) = two(make_bench)
    two_.start_s = 60.0
    began = clock()
    await bench.service.start()
    assert bench.state == "ready"
    assert clock() - began < 10.0
    assert [engine.up for engine in bench.service.snapshot().engines] == [True, False]
    assert (await bench.handle("0")).engine == "one"
    await asyncio.sleep(60.0)
    assert [engine.up for engine in bench.service.snapshot().engines] == [True, True]


@in_virtual_time
async def test_an_engine_that_may_not_join_is_tried_again_while_the_others_serve(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench)
    two_.refusal = SetupError("engine two on b cannot join: splat-miner 1 there", fix="update b")
    await bench.service.start()
    await asyncio.sleep(5.0)
    assert any("engine two does not start" in warning for warning in bench.warnings)
    assert any("update b" in warning for warning in bench.warnings)
    two_.refusal = None
    await asyncio.sleep(60.0)
    assert all(engine.up for engine in bench.service.snapshot().engines)
    assert one.starts == two_.starts == 1


@in_virtual_time
async def test_a_miner_none_of_whose_engines_may_join_does_not_start(
    make_bench: MakeBench,
) -> None:
    bench, engines = two(make_bench)
    for engine in engines:
        engine.refusal = GONE
    with pytest.raises(SetupError, match="the node is gone"):
        await bench.service.start()
    await bench.service.close()


@in_virtual_time
async def test_an_engine_that_is_lost_as_soon_as_it_is_ready_is_started_again(
    make_bench: MakeBench,
) -> None:
    engine = MortalEngine("only")
    bench = make_bench(engine)
    fleet = bench.service._engines
    take = fleet.on_ready

    def take_and_lose(ready: EngineClient) -> None:
        take(ready)
        if engine.starts == 1:
            asyncio.get_running_loop().call_soon(engine.die)

    fleet.on_ready = take_and_lose
    await bench.service.start()
    await asyncio.sleep(10.0)
    assert (engine.starts, bench.state) == (2, "ready")
    assert (await bench.handle("0")).outcome == "completed"


@in_virtual_time
async def test_a_hanging_process_is_ended_and_started_again_instead_of_the_miner(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench, budget_s=100.0)
    await all_up(bench)
    hung = await bench.held("lift", "0")
    answer = await hung
    assert (answer.outcome, answer.reason_code) == ("failed", "engine_dead")
    lost = one if bench.events("engine_lost")[0]["engine"] == "one" else two_
    assert lost.closed
    assert not bench.service.hung
    await asyncio.sleep(10.0)
    assert lost.starts == 2
    assert bench.state == "ready"


@in_virtual_time
async def test_engines_are_given_up_only_together(make_bench: MakeBench) -> None:
    """Else one that failed first would be missing for good once the other one is back."""
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    one.refusal = GONE
    one.die()
    await asyncio.sleep(300.0)
    two_.refusal = GONE
    two_.die()
    await asyncio.sleep(20.0)
    assert not bench.service.died.is_set()
    one.refusal = two_.refusal = None
    await asyncio.sleep(65.0)
    assert [engine.up for engine in bench.service.snapshot().engines] == [True, True]


@in_virtual_time
async def test_a_signal_while_they_load_ends_what_was_started(make_bench: MakeBench) -> None:
    bench, engines = two(make_bench)
    for engine in engines:
        engine.start_s = 1000.0
    starting = asyncio.create_task(bench.service.start())
    await asyncio.sleep(1.0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await bench.service.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@in_virtual_time
async def test_the_faster_of_two_idle_engines_gets_the_request(make_bench: MakeBench) -> None:
    slow = FakeEngine({stage: 2 * seconds for stage, seconds in SECONDS.items()}, name="slow")
    fast = FakeEngine(name="fast")
    bench = make_bench(slow, fast)
    await bench.service.start()
    await asyncio.sleep(0.1)
    for number in range(3):
        assert (await bench.handle(str(number))).engine == "fast"


@in_virtual_time
async def test_two_requests_go_to_two_engines_also_if_one_takes_requests_ahead(
    make_bench: MakeBench,
) -> None:
    bench, engines = two(make_bench)
    await all_up(bench)
    asking = await asked(bench, 2)
    assert [len({task for task, _ in engine.ran}) for engine in engines] == [1, 1]
    assert codes(list(await asyncio.gather(*asking))) == ["ok"] * 2


@in_virtual_time
async def test_candidates_spread_over_idle_engines(make_bench: MakeBench) -> None:
    engines = [MortalEngine(name, worth=lambda task: 0.5) for name in ("one", "two", "three")]
    bench = make_bench(*engines, candidates=CandidateLimits(max=9, target=0.9))
    await all_up(bench)
    answer = await bench.handle("0")
    assert answer.candidates > 3
    drawn = [sum(stage == "prompt" for _, stage in engine.ran) for engine in engines]
    assert min(drawn) >= 2


@in_virtual_time
async def test_candidates_of_a_lost_engine_cost_no_answer(make_bench: MakeBench) -> None:
    engines = [MortalEngine(name, worth=lambda task: 0.5) for name in ("one", "two")]
    bench = make_bench(*engines, candidates=CandidateLimits(max=9, target=0.9))
    await all_up(bench)
    asking = bench.ask("0")
    await asyncio.sleep(sum(SECONDS.values()) + 1.0)
    engines[0].die()
    await asyncio.sleep(0.5)
    engines[1].die()
    answer = await asking
    assert (answer.outcome, answer.candidates >= 1) == ("completed", True)
    assert one_line_each(bench, 1)
