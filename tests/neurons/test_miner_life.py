"""How a miner's life ends: by a signal, by its engine, or before it began."""

import asyncio
import functools
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from generation.errors import EngineDead
from miner.assembly import Parts
from miner.last_resort import LastResort
from miner.life import State
from miner.request import Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from neurons import miner
from neurons.miner import DEREGISTERED, DIED, STOPPED, _run, _serve, _stop_on_signals
from protocol.errors import SetupError
from protocol.tasks import TextTask
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine
from tests.support.waiting import PATIENCE_S, until


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


class Silent(LastResort):
    """Notes when the process has to end, and ends nothing."""

    def __init__(self) -> None:
        super().__init__(60.0)
        self.steps: list[str] = []

    def watch_loop(self) -> None:
        self.steps.append("watch")

    def process_ends(self) -> None:
        self.steps.append("ends")


class Life:
    """A miner on a fake engine, with one door."""

    def __init__(self, log: ScoreLog, engine: FakeEngine | None = None) -> None:
        self.engine = engine or FakeEngine()
        self.service = MinerService(
            [self.engine], log, budget_s=30.0, margin_s=1.0, clock=lambda: 0.0
        )
        self.door = Door()
        self.chain = Published(self.door)
        self.stop = asyncio.Event()
        self.last_resort = Silent()
        self.transports: list[Any] = [self.door]

    def run(self) -> Awaitable[tuple[int, str]]:
        parts = Parts(self.service, self.transports, self.door.axon)
        return asyncio.create_task(_serve(parts, self.chain, self.stop, self.last_resort))

    async def until_ready(self) -> None:
        await until(lambda: self.service.state is State.READY)

    async def handle(self) -> Any:
        request = Request(TextTask(id="t", prompt="a cube"), Caller("5V"), "axon", received_at=0.0)
        return await self.service.handle(request)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ScoreLog]:
    opened = ScoreLog(tmp_path)
    yield opened
    opened.close()


async def test_a_signal_drains_and_ends_it_with_0(log: ScoreLog) -> None:
    life = Life(log)
    running = asyncio.ensure_future(life.run())
    await life.until_ready()
    life.engine.hold_at = "splats"
    asking = asyncio.create_task(life.handle())
    await life.engine.holding.wait()
    assert life.last_resort.steps == ["watch"]
    life.stop.set()
    await asyncio.sleep(0.01)
    assert not running.done()
    assert "close" not in life.door.steps
    assert life.last_resort.steps == ["watch", "ends"]
    life.engine.release.set()
    assert await running == (STOPPED, "asked to by a signal")
    assert (await asking).outcome == "completed"
    assert life.door.steps == ["serve", "publish", "close"]
    assert life.engine.closed


async def test_the_metrics_open_before_everything_and_close_after_everything(
    log: ScoreLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    life = Life(log)
    metrics: Any = Door()
    metrics.steps = life.door.steps
    monkeypatch.setattr(life.engine, "start", functools.partial(note, life, "engine starts"))
    monkeypatch.setattr(life.engine, "close", functools.partial(note, life, "engine closes"))
    parts = Parts(life.service, life.transports, life.door.axon, metrics)
    running = asyncio.create_task(_serve(parts, life.chain, life.stop, life.last_resort))
    await life.until_ready()
    life.stop.set()
    await running
    steps = life.door.steps
    assert steps[:3] == ["serve", "serve", "engine starts"]
    assert steps[-3:] == ["close", "engine closes", "close"]


async def note(life: Life, step: str) -> bool:
    life.door.steps.append(step)
    return True


async def test_a_dead_engine_ends_it_with_an_error(log: ScoreLog) -> None:
    life = Life(log)
    life.engine.error_at, life.engine.error = "splats", EngineDead("CUDA error 700")
    running = life.run()
    await life.until_ready()
    assert (await life.handle()).reason_code == "engine_dead"
    assert await running == (DIED, "the engine died")
    assert life.door.steps[-1] == "close"
    assert life.last_resort.steps == ["watch", "ends"]


async def test_a_lost_uid_drains_and_ends_it_with_a_status_of_its_own(log: ScoreLog) -> None:
    life = Life(log)
    running = life.run()
    await life.until_ready()
    life.chain.deregistered.set()
    code, reason = await running
    assert code == DEREGISTERED
    assert "not registered any more" in reason
    assert life.door.steps[-1] == "close"


async def test_every_transport_is_closed_even_if_one_of_them_fails(log: ScoreLog) -> None:
    class Stuck(Door):
        async def close(self) -> None:
            raise OSError("stuck")

    life = Life(log)
    life.transports.append(Stuck())
    running = life.run()
    await life.until_ready()
    life.stop.set()
    with pytest.raises(OSError, match="stuck"):
        await running
    assert life.door.steps == ["serve", "publish", "close"]
    assert life.engine.closed


async def test_a_signal_while_loading_ends_it_with_0(log: ScoreLog) -> None:
    class Loading(FakeEngine):
        async def start(self) -> None:
            self.holding.set()
            await asyncio.Event().wait()

    life = Life(log, Loading())
    running = life.run()
    await life.engine.holding.wait()
    life.stop.set()
    assert await running == (STOPPED, "asked to by a signal")
    assert life.door.steps == ["serve", "close"]
    assert life.engine.closed
    assert life.last_resort.steps == ["ends"]


async def test_a_signal_just_before_anything_loads_ends_it_with_0(log: ScoreLog) -> None:
    """Starting Ray holds the event loop: the signal is seen once all parts are there."""
    life = Life(log)
    life.stop.set()
    assert await life.run() == (STOPPED, "asked to by a signal")
    assert life.door.steps == ["close"]
    assert life.service.state is State.DRAINING
    assert life.engine.closed


async def test_a_signal_before_the_engines_start_ends_it_with_0(log: ScoreLog) -> None:
    class Opening(Door):
        async def serve(self) -> None:
            await super().serve()
            life.stop.set()
            await asyncio.Event().wait()

    life = Life(log)
    life.transports.append(Opening())
    assert await life.run() == (STOPPED, "asked to by a signal")
    assert life.service.state is State.DRAINING


async def test_a_signal_while_the_chain_is_read_ends_it_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    reading = asyncio.Event()

    class Hanging(StaticChain):
        async def close(self) -> None:
            closed.append("chain")

    async def assemble(*_: object) -> None:
        reading.set()
        await asyncio.Event().wait()

    stop = asyncio.Event()
    monkeypatch.setattr(miner, "chain_of", lambda config: Hanging())
    monkeypatch.setattr(miner, "assemble", assemble)
    monkeypatch.setattr(miner, "_stop_on_signals", lambda last_resort: stop)
    config: Any = SimpleNamespace(
        drain=SimpleNamespace(limit=60.0), engines=SimpleNamespace(kind="local")
    )
    running = asyncio.create_task(_run(config, ScoreLog(tmp_path)))
    await reading.wait()
    stop.set()
    assert await running == (STOPPED, False)
    assert closed == ["chain"]
    assert '"exit_code": 0' in (tmp_path / "score.jsonl").read_text()


async def test_an_engine_that_does_not_start_is_a_reason_not_to_start(log: ScoreLog) -> None:
    class Broken(FakeEngine):
        async def start(self) -> None:
            raise SetupError("no weights", fix="python -m scripts.fetch_models")

    life = Life(log, Broken())
    with pytest.raises(SetupError, match="fetch_models"):
        await life.run()
    assert life.door.steps == ["serve", "close"]


async def test_an_address_that_the_chain_does_not_take_is_a_reason_not_to_start(
    log: ScoreLog,
) -> None:
    life = Life(log)
    life.chain.error = SetupError("the chain did not take it", fix="wait")
    with pytest.raises(SetupError, match="did not take it"):
        await life.run()
    assert life.door.steps[-1] == "close"
    assert life.last_resort.steps == ["watch", "ends"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_second_signal_is_not_held_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    last_resort = Silent()
    stop = _stop_on_signals(last_resort)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(stop.wait(), PATIENCE_S)
    after = signal.getsignal(number)
    signal.signal(number, before)
    assert after in (signal.SIG_DFL, signal.default_int_handler)
    assert last_resort.steps == ["ends"]


def test_what_ends_it_is_called_off_when_main_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Callable[..., Any] | str] = []
    monkeypatch.setattr(LastResort, "call_off", lambda: called.append("off"))
    assert miner.main(["--axon.prot", "1"]) == miner.NOT_STARTED
    assert called == ["off"]
