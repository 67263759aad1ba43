"""SIGHUP starts the engines again, one after the other, while the others serve."""

import asyncio
import os
import signal

import pytest

from miner.engines.renewal import LOOK_EVERY_S, ignore_hangup, renew_on_hangup
from miner.request import Answer, Caller
from tests.miner.conftest import MakeBench
from tests.support.far_engines import MortalEngine
from tests.support.several_engines import GONE, all_up, asked, codes, one_line_each, two
from tests.support.virtual_time import in_virtual_time


async def test_a_signal_renews_and_a_second_one_meanwhile_is_ignored() -> None:
    begun, release = 0, asyncio.Event()

    async def renew() -> None:
        nonlocal begun
        begun += 1
        await release.wait()

    renew_on_hangup(renew)
    try:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0.02)
        assert begun == 1
        release.set()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
        assert begun == 2
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_a_signal_while_the_miner_starts_does_not_end_it() -> None:
    ignore_hangup()
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


@in_virtual_time
async def test_nothing_is_renewed_before_the_miner_is_ready(make_bench: MakeBench) -> None:
    bench, engines = two(make_bench)
    starting = asyncio.create_task(bench.service.start())
    await asyncio.sleep(0.1)
    await bench.service.renew_engines()
    assert any("the miner is not ready" in warning for warning in bench.warnings)
    await starting
    await asyncio.sleep(10.0)
    assert [engine.starts for engine in engines] == [1, 1]


@in_virtual_time
async def test_renewal_restarts_one_engine_at_a_time_and_loses_no_request(
    make_bench: MakeBench,
) -> None:
    bench, engines = two(make_bench)
    await all_up(bench)
    up: list[int] = []

    async def traffic() -> list[Answer]:
        answers = []
        for number in range(12):
            answers.append(bench.ask(str(number), caller=Caller(f"5{number}")))
            await asyncio.sleep(2.0)
            up.append(sum(engine.up for engine in bench.service.snapshot().engines))
        return list(await asyncio.gather(*answers))

    asking = asyncio.create_task(traffic())
    await asyncio.sleep(3.0)
    renewing = asyncio.create_task(bench.service.renew_engines())
    assert codes(await asking) == ["ok"] * 12
    await renewing
    assert [engine.starts for engine in engines] == [2, 2]
    assert min(up) == 1, "one of them always served"
    assert bench.events("engine_lost") == []
    assert bench.states() == ["warming_up", "ready"]
    assert one_line_each(bench, 12)


@in_virtual_time
async def test_renewal_stops_with_the_first_engine_that_does_not_come_back(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    one.refusal = GONE
    await bench.service.renew_engines()
    assert two_.starts == 1, "it still serves"
    assert any("not all engines were renewed" in warning for warning in bench.warnings)
    one.refusal = None
    await asyncio.sleep(60.0)
    assert one.starts == 2


@in_virtual_time
@pytest.mark.parametrize("how", ["lost", "draining"])
async def test_an_engine_that_is_to_be_renewed_serves_on_if_no_other_one_does(
    make_bench: MakeBench, how: str
) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    busy, other = (one, two_) if one.ran else (two_, one)
    renewing = asyncio.create_task(bench.service.renew_engines())
    await asyncio.sleep(other.start_s + 1.5 if busy is two_ else 0.2)
    draining = None
    if how == "lost":
        other.refusal = GONE
        other.die()
    else:
        draining = asyncio.create_task(bench.service.drain())
    await asyncio.sleep(0.2)
    await renewing
    assert busy.starts == 1
    if draining is None:
        assert any("no other one serves meanwhile" in warning for warning in bench.warnings)
        assert (await bench.handle("1")).engine == busy.name
    else:
        assert not any("renewed" in warning for warning in bench.warnings)
        await draining
    assert (await asking).outcome == "completed"


@in_virtual_time
async def test_a_single_engine_is_not_renewed(make_bench: MakeBench) -> None:
    engine = MortalEngine("only")
    bench = make_bench(engine)
    await all_up(bench)
    await bench.service.renew_engines()
    assert engine.starts == 1
    assert any("another has to serve" in warning for warning in bench.warnings)


@in_virtual_time
async def test_a_drained_engine_is_started_again_only_when_its_last_step_has_ended(
    make_bench: MakeBench,
) -> None:
    bench, (one, two_) = two(make_bench)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    busy = one if one.ran else two_
    renewing = asyncio.create_task(bench.service.renew_engines())
    await asyncio.sleep(1.0)
    assert (busy.starts, asking.done()) == (1, False) or busy is two_
    answer = await asking
    assert (answer.outcome, answer.lost_engine) == ("completed", None)
    await asyncio.sleep(2 * LOOK_EVERY_S)
    await renewing
    assert [one.starts, two_.starts] == [2, 2]
