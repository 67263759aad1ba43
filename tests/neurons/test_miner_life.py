"""How a miner's life ends: by a signal, by its engine, or before it began."""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from generation.errors import EngineDead
from miner.request import Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService, State
from neurons.miner import DEREGISTERED, DIED, STOPPED, _serve, _stop_on_signals
from protocol.errors import SetupError
from protocol.tasks import TextTask
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeGenerator


class Door:
    """A transport without a network, that notes what is done to it."""

    name = "door"

    def __init__(self) -> None:
        self.axon = object()
        self.steps: list[str] = []

    async def serve(self) -> None:
        self.steps.append("serve")

    async def close(self) -> None:
        self.steps.append("close")


class Published(StaticChain):
    def __init__(self, door: Door, error: SetupError | None = None) -> None:
        super().__init__()
        self.door, self.error = door, error

    async def publish(self, axon: object) -> None:
        assert axon is self.door.axon
        self.door.steps.append("publish")
        if self.error is not None:
            raise self.error


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ScoreLog]:
    opened = ScoreLog(tmp_path)
    yield opened
    opened.close()


def request() -> Request:
    return Request(TextTask(id="t", prompt="a cube"), Caller("5V"), "axon", received_at=0.0)


async def until_ready(service: MinerService) -> None:
    for _ in range(500):
        if service.state is State.READY:
            return
        await asyncio.sleep(0.001)


async def test_a_signal_drains_and_ends_it_with_0(log: ScoreLog) -> None:
    generator, door, stop = FakeGenerator(), Door(), asyncio.Event()
    service = MinerService(generator, log, budget_s=30.0, margin_s=1.0, clock=lambda: 0.0)
    running = asyncio.create_task(_serve(service, [door], door.axon, Published(door), stop))
    await until_ready(service)
    generator.hold_at = "splats"
    asking = asyncio.create_task(service.handle(request()))
    await generator.holding.wait()
    stop.set()
    await asyncio.sleep(0.01)
    assert not running.done()
    assert "close" not in door.steps
    generator.release.set()
    assert await running == (STOPPED, "asked to by a signal")
    assert (await asking).outcome == "completed"
    assert door.steps == ["serve", "publish", "close"]
    assert generator.closed


async def test_a_dead_engine_ends_it_with_an_error(log: ScoreLog) -> None:
    generator, door = FakeGenerator(), Door()
    generator.error_at, generator.error = "splats", EngineDead("CUDA error 700")
    service = MinerService(generator, log, budget_s=30.0, margin_s=1.0, clock=lambda: 0.0)
    running = asyncio.create_task(
        _serve(service, [door], door.axon, Published(door), asyncio.Event())
    )
    await until_ready(service)
    assert (await service.handle(request())).reason_code == "engine_dead"
    assert await running == (DIED, "the engine died")
    assert door.steps[-1] == "close"


async def test_a_lost_uid_drains_and_ends_it_with_a_status_of_its_own(log: ScoreLog) -> None:
    door = Door()
    chain = Published(door)
    service = MinerService(FakeGenerator(), log, budget_s=30.0, margin_s=1.0, clock=lambda: 0.0)
    running = asyncio.create_task(_serve(service, [door], door.axon, chain, asyncio.Event()))
    await until_ready(service)
    chain.deregistered.set()
    code, reason = await running
    assert code == DEREGISTERED
    assert "not registered any more" in reason
    assert door.steps[-1] == "close"


async def test_every_transport_is_closed_even_if_one_of_them_fails(log: ScoreLog) -> None:
    class Stuck(Door):
        async def close(self) -> None:
            raise OSError("stuck")

    first, stuck, stop = Door(), Stuck(), asyncio.Event()
    service = MinerService(FakeGenerator(), log, budget_s=30.0, margin_s=1.0, clock=lambda: 0.0)
    running = asyncio.create_task(_serve(service, [first, stuck], None, StaticChain(), stop))
    await until_ready(service)
    stop.set()
    with pytest.raises(OSError, match="stuck"):
        await running
    assert first.steps == ["serve", "close"]


async def test_a_signal_while_loading_ends_it_with_0(log: ScoreLog) -> None:
    class Loading(FakeGenerator):
        async def start(self) -> Mapping[str, float]:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")

    generator, door, stop = Loading(), Door(), asyncio.Event()
    service = MinerService(generator, log, budget_s=30.0, margin_s=1.0)
    running = asyncio.create_task(_serve(service, [door], door.axon, Published(door), stop))
    await asyncio.sleep(0.01)
    stop.set()
    assert await running == (STOPPED, "asked to by a signal")
    assert door.steps == ["serve", "close"]
    assert generator.closed


async def test_an_address_that_the_chain_does_not_take_is_a_reason_not_to_start(
    log: ScoreLog,
) -> None:
    door = Door()
    chain = Published(door, SetupError("the chain did not take it", fix="wait"))
    service = MinerService(FakeGenerator(), log, budget_s=30.0, margin_s=1.0)
    with pytest.raises(SetupError, match="did not take it"):
        await _serve(service, [door], door.axon, chain, asyncio.Event())
    assert door.steps[-1] == "close"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_is_not_held_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = _stop_on_signals()
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), 1.0)
    after = signal.getsignal(number)
    signal.signal(number, before)
    assert after in (signal.SIG_DFL, signal.default_int_handler)
