"""A lane starts waiting work in the order of its requests and survives cancelled callers."""

import asyncio
import gc
import threading
from functools import partial

import pytest

from generation.lanes import Lane


def _nothing() -> None: ...


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_oldest_request_goes_first_whenever_it_came() -> None:
    lane, release, done = Lane("test", 1), threading.Event(), list[int]()
    first = asyncio.create_task(lane.run(9, release.wait, before=_nothing))
    await _settle()
    waiting = [
        asyncio.create_task(lane.run(order, partial(done.append, order), before=_nothing))
        for order in (5, 3, 8, 1)
    ]
    await _settle()
    release.set()
    await asyncio.gather(first, *waiting)
    assert done == [1, 3, 5, 8]
    await lane.close()


async def test_a_request_keeps_the_lane_for_its_next_stage_while_younger_ones_wait() -> None:
    lane, ran = Lane("test", 1), list[str]()

    async def request(order: int) -> None:
        for stage in "abc":
            await lane.run(order, partial(ran.append, f"{order}{stage}"), before=_nothing)

    await asyncio.gather(request(0), request(1))
    assert ran == ["0a", "0b", "0c", "1a", "1b", "1c"]
    await lane.close()


async def test_before_is_called_in_the_loop_when_the_thread_is_free() -> None:
    lane, release, seen = Lane("test", 1), threading.Event(), list[str]()
    first = asyncio.create_task(lane.run(0, release.wait, before=_nothing))
    await _settle()

    def before() -> None:
        seen.append(threading.current_thread().name)

    second = asyncio.create_task(lane.run(1, _nothing, before=before))
    await _settle()
    assert seen == []
    release.set()
    await asyncio.gather(first, second)
    assert seen == [threading.current_thread().name]
    await lane.close()


async def test_before_can_call_the_work_off_and_the_lane_goes_on() -> None:
    lane, ran = Lane("test", 1), list[str]()

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lane.run(0, partial(ran.append, "refused"), before=refuse)
    await lane.run(1, partial(ran.append, "next"), before=_nothing)
    assert ran == ["next"]
    await lane.close()


async def test_a_cancelled_caller_loses_its_place() -> None:
    lane, release, ran = Lane("test", 1), threading.Event(), list[str]()
    first = asyncio.create_task(lane.run(0, release.wait, before=_nothing))
    await _settle()
    gone = asyncio.create_task(lane.run(1, partial(ran.append, "gone"), before=_nothing))
    stays = asyncio.create_task(lane.run(2, partial(ran.append, "stays"), before=_nothing))
    await _settle()
    gone.cancel()
    release.set()
    await asyncio.gather(first, stays)
    assert ran == ["stays"]
    assert gone.cancelled()
    await lane.close()


async def test_a_turn_that_comes_as_its_caller_is_cancelled_is_passed_on() -> None:
    lane, ran = Lane("test", 1), list[str]()
    await lane._acquire(0)
    gone = asyncio.create_task(lane.run(1, partial(ran.append, "gone"), before=_nothing))
    stays = asyncio.create_task(lane.run(2, partial(ran.append, "stays"), before=_nothing))
    await _settle()
    lane._release()  # The turn is given to the first in line, who has not taken it up yet.
    gone.cancel()
    await stays
    assert ran == ["stays"]
    await lane.run(3, partial(ran.append, "later"), before=_nothing)
    assert ran == ["stays", "later"]
    await lane.close()


async def test_work_in_progress_keeps_its_thread_after_its_caller_left() -> None:
    lane, entered, release, ran = Lane("test", 1), threading.Event(), threading.Event(), list[str]()

    def fail_at_last() -> None:
        entered.set()
        release.wait(10)
        ran.append("first")
        raise ValueError("nobody listens")

    first = asyncio.create_task(lane.run(0, fail_at_last, before=_nothing))
    await asyncio.to_thread(entered.wait, 10)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(lane.run(1, partial(ran.append, "second"), before=_nothing))
    await _settle()
    assert ran == []
    release.set()
    await second
    assert ran == ["first", "second"]
    await lane.close()


async def test_a_failure_that_nobody_waits_for_is_not_printed() -> None:
    lane, entered, release, said = (
        Lane("test", 1),
        threading.Event(),
        threading.Event(),
        list[str](),
    )
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(str(context)))

    def fail() -> None:
        entered.set()
        release.wait(10)
        raise ValueError("nobody listens")

    left = asyncio.create_task(lane.run(0, fail, before=_nothing))
    await asyncio.to_thread(entered.wait, 10)
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    release.set()
    await lane.run(1, _nothing, before=_nothing)
    del left
    gc.collect()
    await _settle()
    assert said == []
    await lane.close()


async def test_as_many_run_at_once_as_there_are_workers() -> None:
    lane, together = Lane("test", 2), threading.Barrier(2, timeout=10)
    await asyncio.gather(*(lane.run(n, together.wait, before=_nothing) for n in range(4)))
    await lane.close()
