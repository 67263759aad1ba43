import asyncio
import threading

import pytest

from miner.daemon_call import LoneCall, StillRunning, in_daemon_thread, in_words
from tests.support.fakes import Clock
from tests.support.waiting import PATIENCE_S, until


async def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    call = asyncio.create_task(in_daemon_thread(lambda: None, PATIENCE_S))
    await asyncio.sleep(0)
    threading.Event().wait(0.05)  # The loop stands still until the thread has sent its result.
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_what_takes_too_long_is_left_behind() -> None:
    with pytest.raises(TimeoutError) as caught:
        await in_daemon_thread(lambda: threading.Event().wait(PATIENCE_S), 0.01)
    assert in_words(caught.value) == "no answer in time"


async def test_results_and_errors_arrive() -> None:
    assert await in_daemon_thread(lambda: 7, PATIENCE_S) == 7
    with pytest.raises(ZeroDivisionError) as caught:
        await in_daemon_thread(lambda: 1 // 0, PATIENCE_S)
    assert in_words(caught.value).startswith("ZeroDivisionError: ")


async def test_a_result_that_comes_late_is_discarded() -> None:
    release, discarded = threading.Event(), list[int]()
    freed = threading.Event()

    def discard(result: int) -> None:
        discarded.append(result)
        freed.set()

    def slow() -> int:
        release.wait(PATIENCE_S)
        return 7

    with pytest.raises(TimeoutError):
        await in_daemon_thread(slow, 0.01, discard=discard)
    assert discarded == []
    release.set()
    await asyncio.to_thread(freed.wait, PATIENCE_S)
    assert discarded == [7]


async def test_a_result_that_comes_with_a_cancellation_is_discarded() -> None:
    discarded = list[int]()
    freed = threading.Event()

    def discard(result: int) -> None:
        discarded.append(result)
        freed.set()

    call = asyncio.create_task(in_daemon_thread(lambda: 7, PATIENCE_S, discard=discard))
    await asyncio.sleep(0)
    threading.Event().wait(0.05)  # The loop stands still until the thread has sent its result.
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.to_thread(freed.wait, PATIENCE_S)
    assert discarded == [7]


def test_a_result_that_comes_after_the_loop_is_discarded() -> None:
    release, discarded, freed = threading.Event(), list[int](), threading.Event()

    def discard(result: int) -> None:
        discarded.append(result)
        freed.set()

    def slow() -> int:
        release.wait(PATIENCE_S)
        return 7

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await in_daemon_thread(slow, 0.01, discard=discard)

    asyncio.run(give_up())
    release.set()
    assert freed.wait(PATIENCE_S)
    assert discarded == [7]


async def test_a_result_in_time_is_not_discarded() -> None:
    discarded = list[int]()
    assert await in_daemon_thread(lambda: 7, PATIENCE_S, discard=discarded.append) == 7
    await asyncio.sleep(0.01)
    assert discarded == []


async def test_a_call_that_hangs_is_not_made_again_until_it_returns() -> None:
    release, clock, made = threading.Event(), Clock(), list[None]()

    def slow() -> int:
        made.append(None)
        release.wait(PATIENCE_S)
        return len(made)

    call = LoneCall(slow, "the call", 0.01, clock=clock)
    with pytest.raises(TimeoutError):
        await call()
    clock.now += 33.0
    for _ in range(5):
        with pytest.raises(StillRunning) as caught:
            await call()
    assert in_words(caught.value) == "the call of 33 s ago still hangs, no other is made"
    assert len(made) == 1
    release.set()
    await until(lambda: call._running_since is None or len(made) > 1)
    assert len(made) == 1
    assert await call() == 2


async def test_a_call_that_fails_can_be_made_again() -> None:
    call = LoneCall(lambda: 1 // 0, "the call", PATIENCE_S)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await call()
