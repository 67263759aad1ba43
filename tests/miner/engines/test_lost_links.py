"""A process that cannot be ended, or does not notice: nothing waits for it."""

import asyncio
from collections.abc import Callable

import pytest

from miner.engines import EngineLost
from miner.engines.wire import SetupFault
from protocol.errors import SetupError
from tests.miner.engines.test_linked_engine import Run, stages_in_time, started
from tests.support.far_engines import FarEngine
from tests.support.virtual_time import (
    in_virtual_time,
    lanes_take_virtual_time,
    threads_take_no_time,
)


@pytest.fixture(autouse=True)
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes_take_virtual_time(monkeypatch)
    threads_take_no_time(monkeypatch)


def broken() -> None:
    raise OSError("the connection is broken")


@in_virtual_time
async def test_runs_end_and_the_front_learns_it_though_the_process_cannot_be_ended() -> None:
    engine = await started(stages=stages_in_time(1.0))
    reasons: list[str] = []
    engine.on_lost = reasons.append
    run = Run(engine)
    await run.until(lambda: run.events)
    engine.link.kill = broken  # type: ignore[method-assign]
    engine.link.die()
    with pytest.raises(EngineLost, match="the process was killed"):
        await run.running
    assert reasons == ["the process was killed"]


@in_virtual_time
async def test_the_reason_not_to_start_stays_the_reason() -> None:
    engine = FarEngine(clock=asyncio.get_running_loop().time)
    make = engine._make

    def refuses() -> object:
        link = make()
        link.identity = SetupFault("no weights", "fetch them")
        link.kill = broken  # type: ignore[method-assign]
        return link

    engine._make = refuses  # type: ignore[assignment]
    with pytest.raises(SetupError, match="no weights"):
        await engine.start()
    engine.link.die()


@in_virtual_time
async def test_a_closed_engine_is_not_listened_to_any_more() -> None:
    engine = await started()
    now, link = engine._now, engine.link
    assert now is not None
    assert now.listening is not None
    link.silent = True
    kill: Callable[[], None] = link.die
    link.kill = lambda: None  # type: ignore[method-assign]
    await asyncio.sleep(2.0)
    await engine.close()
    assert now.listening.done()
    kill()
