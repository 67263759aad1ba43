"""SIGHUP starts the engines again, one after the other, while the others serve."""

import asyncio
import os
import signal

import pytest
from loguru import logger

from miner.engines.renewal import LOOK_EVERY_S, ignore_hangup, renew_on_hangup
from miner.request import Answer, Caller
from protocol.errors import SetupError
from tests.miner.conftest import MakeBench
from tests.support.far_engines import MortalEngine
from tests.support.several_engines import GONE, all_up, asked, codes, one_line_each, two
from tests.support.virtual_time import in_virtual_time


async def test_a_signal_renews_and_a_second_one_meanwhile_is_ignored_and_logged() -> None:
    begun, release = 0, asyncio.Event()
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="WARNING")

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
        assert lines == ["the engines are being started again already\n"]
        release.set()
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
        assert begun == 2
        assert len(lines) == 1
    finally:
        logger.remove(sink)
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


class CrowdedEngine(MortalEngine):
    """One of several that share too few places, in the order in which they ask."""

    def __init__(self, name: str, room: asyncio.Semaphore) -> None:
        super().__init__(name)
        self.room, self.placed = room, False

    async def start(self) -> None:
        try:
            await asyncio.wait_for(self.room.acquire(), 60.0)
        except TimeoutError:
            raise SetupError("no GPU was free within 60 s", fix="add one") from None
        self.placed = True
        await super().start()

    async def close(self) -> bool:
        if self.placed:
            self.placed = False
            self.room.release()
        return await super().close()


@in_virtual_time
async def test_an_engine_that_waits_for_room_does_not_take_the_place_of_one_that_is_renewed(
    make_bench: MakeBench,
) -> None:
    room = asyncio.Semaphore(2)
    engines = [CrowdedEngine(name, room) for name in ("one", "two", "three")]
    bench = make_bench(*engines)
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}", level="INFO")
    await bench.service.start()
    await asyncio.sleep(20.0)  # The third one waits for room.
    await bench.service.renew_engines()
    logger.remove(sink)
    assert [engine.starts for engine in engines] == [2, 2, 0]
    renewed = [line for line in lines if "is renewed" in line]
    assert renewed == [f"engine {name} is renewed and serves again\n" for name in ("one", "two")]
    room.release()
    await asyncio.sleep(90.0)
    assert engines[2].starts == 1, "it is tried again afterwards"
    await bench.service.close()


@in_virtual_time
async def test_an_engine_that_waits_for_room_ends_with_the_miner_during_a_renewal(
    make_bench: MakeBench,
) -> None:
    room = asyncio.Semaphore(2)
    engines = [CrowdedEngine(name, room) for name in ("one", "two", "three")]
    bench = make_bench(*engines)
    await bench.service.start()
    await asyncio.sleep(20.0)
    engines[0].start_s = 1000.0
    renewing = asyncio.create_task(bench.service.renew_engines())
    await asyncio.sleep(1.0)
    await bench.service.drain()
    await bench.service.close()
    await renewing
    assert asyncio.all_tasks() == {asyncio.current_task()}


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
