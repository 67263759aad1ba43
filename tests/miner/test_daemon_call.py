import asyncio
import threading

import pytest

from miner.daemon_call import in_daemon_thread, in_words


async def test_a_cancellation_that_comes_with_the_result_is_not_lost() -> None:
    call = asyncio.create_task(in_daemon_thread(lambda: None, 5.0))
    await asyncio.sleep(0)
    threading.Event().wait(0.05)  # The loop stands still until the thread has sent its result.
    asyncio.get_running_loop().call_soon(call.cancel)
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_what_takes_too_long_is_left_behind() -> None:
    with pytest.raises(TimeoutError) as caught:
        await in_daemon_thread(lambda: threading.Event().wait(5.0), 0.01)
    assert in_words(caught.value) == "no answer in time"


async def test_results_and_errors_arrive() -> None:
    assert await in_daemon_thread(lambda: 7, 5.0) == 7
    with pytest.raises(ZeroDivisionError) as caught:
        await in_daemon_thread(lambda: 1 // 0, 5.0)
    assert in_words(caught.value).startswith("ZeroDivisionError: ")
