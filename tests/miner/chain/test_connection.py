"""Connections to the chain in which a call hangs or fails."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.sync.server import ServerConnection, serve

from miner.chain import subtensor as subtensor_module
from miner.chain.subtensor import SubtensorChain, _subtensor, external_ip
from protocol.errors import SetupError
from tests.miner.chain.test_subtensor import FakeSubtensor, metagraph
from tests.support.fakes import Clock
from tests.support.waiting import PATIENCE_S, until


class Hanging(FakeSubtensor):
    """Hangs in every call until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = threading.Event()
        self.ended = threading.Event()
        self.answer = self.hang

    def hang(self) -> Any:
        self.closing.wait(PATIENCE_S)
        self.ended.set()
        return metagraph("5Late")

    def serve_axon(self, **arguments: Any) -> Any:
        self.hang()
        return super().serve_axon(**arguments)

    def close(self) -> None:
        super().close()
        self.closing.set()


def chain(*connections: FakeSubtensor) -> SubtensorChain:
    """Opens the connections in turn, and the last one again if a slow machine lets it time out."""
    following = iter(connections)

    def connect(network: str) -> FakeSubtensor:
        return next(following, connections[-1])

    async def no_pause(seconds: float) -> None:
        await asyncio.sleep(0)

    return SubtensorChain(
        "test", 17, connect=connect, refresh_s=0.01, time_limit_s=0.3, sleep=no_pause
    )


async def test_every_connection_in_which_a_reading_hangs_is_closed() -> None:
    first, hanging, last = FakeSubtensor(), [Hanging() for _ in range(3)], FakeSubtensor()
    last.answer = lambda: metagraph("5A", "5B", "5C")
    contact = chain(first, *hanging, last)
    await contact.start("5A")
    first.answer = lambda: 1 / 0
    await until(lambda: "5C" in contact.snapshot.neurons)
    await until(lambda: all(connection.ended.is_set() for connection in hanging))
    assert first.closed
    assert "5Late" not in contact.snapshot.neurons
    await contact.close()
    assert last.closed


async def test_a_connection_in_which_publishing_hangs_is_closed() -> None:
    first, second = Hanging(), FakeSubtensor()
    first.answer = lambda: metagraph("5A")
    second.answer = lambda: metagraph("5A", "5B")
    contact = chain(first, second)
    await contact.start("5A")
    await contact.publish(SimpleNamespace(external_ip="9.8.7.6", external_port=8000))
    await until(first.ended.is_set)
    assert len(second.calls) == 1
    await until(lambda: "5B" in contact.snapshot.neurons)
    await contact.close()


class HangingConnect:
    """Connects once, then hangs until it is released."""

    def __init__(self) -> None:
        self.first, self.late, self.last = FakeSubtensor(), FakeSubtensor(), FakeSubtensor()
        self.last.answer = lambda: metagraph("5A", "5B", "5C")
        self.release = threading.Event()
        self.attempts = 0
        self.threads: set[threading.Thread] = set()

    def __call__(self, network: str) -> FakeSubtensor:
        self.attempts += 1
        if self.attempts == 1:
            return self.first
        if self.attempts > 2:
            return self.last
        self.threads.add(threading.current_thread())
        self.release.wait(PATIENCE_S)
        return self.late


async def test_a_connect_that_hangs_leaves_one_thread_however_often_the_chain_is_read(
    log_lines: list[str],
) -> None:
    connect, clock = HangingConnect(), Clock()
    contact = SubtensorChain(
        "test", 17, connect=connect, refresh_s=0.001, time_limit_s=0.02, clock=clock
    )
    await contact.start("5A")
    before = threading.active_count()
    connect.first.answer = lambda: 1 / 0
    await until(lambda: len(log_lines) >= 2)
    clock.now += 240.0
    await until(lambda: len(log_lines) >= 20)
    assert connect.attempts == 2
    assert threading.active_count() <= before + 1
    assert "the attempt to connect of 240 s ago still hangs" in log_lines[-1]
    assert "the one in use is 240 s old" in log_lines[-1]

    connect.release.set()  # The connection that comes late is closed, and a new one opened.
    await until(lambda: connect.late.closed)
    await until(lambda: "5C" in contact.snapshot.neurons)
    assert connect.attempts == 3
    await contact.close()
    await until(lambda: not any(thread.is_alive() for thread in connect.threads))


async def test_a_look_up_of_the_address_that_hangs_is_not_repeated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release, asked = threading.Event(), list[None]()

    def hangs() -> str:
        asked.append(None)
        release.wait(PATIENCE_S)
        return "1.2.3.4"

    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", hangs)
    monkeypatch.setattr(subtensor_module._external_ip, "_limit_s", 0.01)
    with pytest.raises(SetupError, match="no answer in time"):
        await external_ip()
    for _ in range(5):
        with pytest.raises(SetupError, match="the look-up of the public address of 0 s ago"):
            await external_ip()
    assert len(asked) == 1
    release.set()
    await until(lambda: subtensor_module._external_ip._running_since is None)
    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", lambda: "5.6.7.8")
    assert await external_ip() == "5.6.7.8"


@dataclass
class SilentNode:
    """Accepts connections and requests and never answers."""

    address: str = ""
    connections: int = 0
    requests: list[object] = field(default_factory=list)

    def take(self, connection: ServerConnection) -> None:
        self.connections += 1
        for request in connection:
            self.requests.append(request)


@pytest.fixture
def node() -> Iterator[SilentNode]:
    silent = SilentNode()
    with serve(silent.take, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        silent.address = "ws://{}:{}".format(*server.socket.getsockname())
        yield silent
        server.shutdown()


# How async-substrate-interface opens its websocket is deprecated.
@pytest.mark.filterwarnings("ignore:connect.. must be used as:DeprecationWarning")
async def test_a_closed_connection_is_not_opened_again_by_the_call_that_hung_in_it(
    monkeypatch: pytest.MonkeyPatch, node: SilentNode
) -> None:
    import bittensor

    real = bittensor.Subtensor

    def without_greeting(network: str) -> Any:
        subtensor = real(network=network, mock=True)
        subtensor.substrate.ws = subtensor.substrate.connect(init=True)
        return subtensor

    monkeypatch.setattr(bittensor, "Subtensor", without_greeting)
    subtensor = _subtensor(node.address)
    call = asyncio.create_task(
        asyncio.to_thread(subtensor.substrate.rpc_request, "system_chain", [])
    )
    await until(lambda: len(node.requests) == 1)
    await asyncio.to_thread(subtensor.close)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(Exception, match="Max retries"):
            await call
    assert node.connections == 1
