"""How front and engine recognise each other."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from miner.engines import handshake
from miner.engines.handshake import HALF, accept, connect, family_of, new_secret

SECRET = new_secret()


class Engine:
    """Waits for its front."""

    def __init__(self, host: str, limit_s: float) -> None:
        self.listener = socket.create_server((host, 0), family=family_of(host))
        self.address: tuple[str, int] = self.listener.getsockname()[:2]
        self.accepting = asyncio.create_task(accept(self.listener, SECRET, limit_s))


@contextlib.asynccontextmanager
async def engine(host: str = "127.0.0.1", limit_s: float = 30.0) -> AsyncIterator[Engine]:
    waiting = Engine(host, limit_s)
    yield waiting
    if connection := await waiting.accepting:
        connection.close()
    assert waiting.listener.fileno() == -1


async def met(waiting: Engine) -> None:
    front = await connect(waiting.address, SECRET)
    there = await waiting.accepting
    assert there is not None
    with front:
        assert front.getblocking()
        assert there.getblocking()
        assert there.getpeername() == front.getsockname()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_the_front_is_served(host: str) -> None:
    try:
        socket.create_server((host, 0), family=family_of(host)).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with engine(host) as waiting:
        await met(waiting)


async def test_strangers_who_come_first_do_not_delay_the_front() -> None:
    async with engine() as waiting:
        with contextlib.ExitStack() as strangers:
            come = [
                strangers.enter_context(socket.create_connection(waiting.address))
                for _ in range(50)
            ]
            for stranger in come[:10]:
                stranger.sendall(b"x" * HALF + b"a call")
            for stranger in come[10:20]:
                stranger.sendall(SECRET[: HALF - 1])
            for stranger in come[20:30]:
                stranger.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(handshake.LIMIT_S / 2):
                await met(waiting)
            for stranger in come:
                stranger.settimeout(10.0)
                with contextlib.suppress(ConnectionError):
                    assert stranger.recv(1) == b""


async def test_an_engine_without_a_front_does_not_wait_longer_than_its_limit() -> None:
    async with engine(limit_s=0.2) as waiting:
        with socket.create_connection(waiting.address):
            assert await waiting.accepting is None


@pytest.mark.parametrize(
    "answer", [b"", b"x" * HALF, SECRET[:HALF]], ids=["nothing", "another", "what was sent"]
)
async def test_the_front_leaves_what_is_not_the_engine(answer: bytes) -> None:
    """It has taken the port of an engine that ended; the front would read objects from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = asyncio.create_task(connect(listener.getsockname(), SECRET))
        there, _ = await asyncio.to_thread(listener.accept)
        with there:
            there.sendall(answer)
            there.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionError, match="is not the engine"):
                await connecting


async def test_the_front_waits_for_no_silent_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake, "LIMIT_S", 0.2)
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(TimeoutError, match="no answer within"):
        await connect(silent.getsockname(), SECRET)
    with pytest.raises(ConnectionRefusedError):
        await connect(("127.0.0.1", 1), SECRET)
