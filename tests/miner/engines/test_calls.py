"""Calls to an object over a connection."""

import asyncio
import socket
import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from miner.engines.calls import Calls, CallServer
from miner.engines.link import LinkLost
from miner.engines.ray_engine import _start_process
from miner.engines.ray_process import Placer


class Target:
    def __init__(self) -> None:
        self.given: list[object] = []
        self.may_answer = asyncio.Event()

    async def take(self, value: object) -> None:
        self.given.append(value)

    async def wait(self) -> str:
        await self.may_answer.wait()
        return "waited"

    async def twice(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        return 2 * array

    async def fail(self) -> None:
        raise ValueError("no\nsuch thing")

    async def give_what_cannot_be_sent(self) -> object:
        return threading.Lock()


class Pair:
    def __init__(self) -> None:
        here, there = socket.socketpair()
        self.target = Target()
        self.ended = asyncio.Event()
        self.server = CallServer(there, self.target, self.ended.set)
        self.caller = Calls(here, "its process")


@pytest.fixture
async def pair() -> Pair:
    return Pair()


async def test_arrays_arrive_in_memory_that_can_be_written(pair: Pair) -> None:
    sent = np.arange(500_000, dtype=np.float32).reshape(-1, 5)
    got = await pair.caller.call("twice", sent)
    assert np.array_equal(got, 2 * sent)
    assert got.flags.writeable
    pair.caller.hang_up()


async def test_a_call_does_not_wait_for_another(pair: Pair) -> None:
    slow = asyncio.create_task(pair.caller.call("wait"))
    pair.caller.post("take", 1)
    assert await pair.caller.call("take", 2) is None
    assert pair.target.given == [1, 2]
    assert not slow.done()
    pair.target.may_answer.set()
    assert await slow == "waited"
    pair.caller.hang_up()


async def test_an_error_there_ends_its_call_alone(pair: Pair) -> None:
    with pytest.raises(LinkLost, match=r"^ValueError: no$"):
        await pair.caller.call("fail")
    pair.caller.post("fail")
    assert await pair.caller.call("take", 1) is None
    pair.caller.hang_up()


async def test_both_ends_notice_the_end(pair: Pair) -> None:
    waiting = asyncio.create_task(pair.caller.call("wait"))
    await pair.caller.call("take", 1)
    pair.caller.hang_up()
    with pytest.raises(LinkLost, match=r"^its process ended or was cut off$"):
        await waiting
    with pytest.raises(LinkLost, match=r"^its process ended or was cut off$"):
        await pair.caller.call("take", 2)
    pair.caller.post("take", 3)
    await asyncio.wait_for(pair.ended.wait(), 10.0)
    assert pair.target.given == [1]


async def test_a_value_that_cannot_be_sent_ends_the_connection(pair: Pair) -> None:
    """Its call would never end."""
    with pytest.raises(LinkLost):
        await pair.caller.call("give_what_cannot_be_sent")


async def test_the_loss_of_the_other_machine_ends_a_connection_that_is_silent() -> None:
    """A call to load networks waits without a limit of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        here = socket.create_connection(listener.getsockname())
        there, _ = listener.accept()
    caller = Calls(here, "its process")
    assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    silent_s = here.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) + here.getsockopt(
        socket.IPPROTO_TCP, socket.TCP_KEEPINTVL
    ) * here.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT)
    assert silent_s == 50
    assert here.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 50_000
    there.close()
    with pytest.raises(LinkLost):
        await caller.call("load")


async def test_what_fails_in_rays_process_shows_no_secret_in_the_log(
    capfd: pytest.CaptureFixture[str],
) -> None:
    process, here = _start_process()
    caller = Calls(here, "its process")
    with pytest.raises(LinkLost, match="No module named 'no_such_module'"):
        await caller.call("place", 0, "no_such_module:Actor", False, b"a secret", 1.0)
    caller.hang_up()
    await asyncio.to_thread(process.wait)
    log = capfd.readouterr().err
    assert "the call place failed" in log
    assert "a secret" not in log


def test_no_two_engines_of_a_machine_get_one_core() -> None:
    placer = Placer()
    places = ["a", "b", "a", "b", "a"]
    cores = [placer._free_core(number, node) for number, node in enumerate(places)]
    assert cores == [0, 0, 1, 1, 2]
    asyncio.run(placer.end(2))
    assert placer._free_core(5, "a") == 1
    assert placer._free_core(6, "a") == 3
