"""What a request becomes whose engine is lost while it runs, or after its object is made."""

import asyncio
from typing import Any

from generation.result import Generation
from miner.entry import Entry
from tests.miner.conftest import MakeBench
from tests.miner.scheduling.toys import make_active
from tests.support.fakes import Clock, FakeEngine
from tests.support.far_engines import MortalEngine
from tests.support.several_engines import all_up, asked, one_line_each
from tests.support.virtual_time import clock, in_virtual_time


class LingeringEngine(MortalEngine):
    """Its runs go on after its loss."""

    async def run(self, *args: Any, **values: Any) -> Generation:
        return await FakeEngine.run(self, *args, **values)


@in_virtual_time
async def test_a_run_on_a_lost_engine_is_given_up_once_its_request_is_placed_again(
    make_bench: MakeBench,
) -> None:
    """Its end would otherwise be taken for that of the new run."""
    engines = [LingeringEngine("one"), LingeringEngine("two")]
    bench = make_bench(*engines)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    first, second = engines if engines[0].ran else engines[::-1]
    await asyncio.sleep(1.0)
    first.die()
    ran = list(first.ran)
    answer = await asking
    assert (answer.outcome, answer.engine) == ("completed", second.name)
    assert first.ran == ran
    assert one_line_each(bench, 1)


@in_virtual_time
async def test_an_object_that_is_there_is_the_answer_when_its_engine_is_lost(
    make_bench: MakeBench,
) -> None:
    engines = [MortalEngine(name, worth=lambda task: 0.9) for name in ("one", "two")]
    for engine in engines:
        engine.hold_at = "score"
    bench = make_bench(*engines)
    await all_up(bench)
    (asking,) = await asked(bench, 1)
    first, second = engines if engines[0].ran else engines[::-1]
    await first.holding.wait()
    began = clock()
    first.die()
    answer = await asking
    assert (answer.outcome, answer.engine, answer.score) == ("completed", first.name, None)
    assert clock() - began < 0.1
    assert not second.ran
    assert one_line_each(bench, 1)


async def test_a_request_that_is_late_after_a_loss_fails_with_engine_lost() -> None:
    now = Clock()
    late = make_active(now, left_s=0.0, engine="two")
    entry = Entry(late, asyncio.get_running_loop().create_future())
    assert (await entry.outcome(now)).code == "deadline_passed"
    late.lost_engine = "one"
    end = await entry.outcome(now)
    assert (end.outcome, end.code, end.stage) == ("failed", "engine_lost", "draw")
    assert end.reason.startswith("engine one was lost, and then it was not done after ")
