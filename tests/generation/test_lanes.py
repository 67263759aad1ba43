"""A lane starts waiting work in the order of the turns and survives callers, errors and threads."""

import asyncio
import ctypes
import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.errors import EngineDead
from generation.lanes import Lane, LaneQueue, TurnExpired
from generation.plan import Turn


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def _turn(order: float) -> Turn:
    return (order, 0)


def _in_iterations(count: int, call: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    if count == 1:
        loop.call_soon(call)
    else:
        loop.call_soon(_in_iterations, count - 1, call)


class _Hold:
    """Work that stays in its thread until it is released."""

    def __init__(self, then: Callable[[], object] = lambda: None) -> None:
        self.entered, self.release = threading.Event(), threading.Event()
        self._then = then

    def __call__(self) -> object:
        self.entered.set()
        assert self.release.wait(10)
        return self._then()

    async def until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 10)


class _Item:
    """Equal to every other one, so that only identity tells them apart."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("push"),
                st.tuples(st.sampled_from([float("-inf"), 0.0, 1.0, 2.5]), st.integers(0, 3)),
            ),
            st.tuples(st.just("pop"), st.just(0)),
            st.tuples(st.just("remove"), st.integers(0, 9)),
        ),
        max_size=40,
    )
)
def test_a_queue_is_a_stably_sorted_list(actions: list[tuple[str, object]]) -> None:
    queue: LaneQueue[_Item] = LaneQueue()
    expected: list[tuple[Turn, int, _Item]] = []
    for number, (action, argument) in enumerate(actions):
        if action == "push":
            item = _Item()
            queue.push(argument, item)  # type: ignore[arg-type]
            expected.append((argument, number, item))  # type: ignore[arg-type]
            expected.sort(key=lambda entry: entry[:2])
        elif action == "pop":
            popped = queue.pop()
            assert popped is (expected.pop(0)[2] if expected else None)
        elif expected:
            index = int(argument) % len(expected)  # type: ignore[call-overload]
            item = expected.pop(index)[2]
            assert queue.remove(item)
            assert not queue.remove(item)
        assert len(queue) == len(expected)
        assert queue.peek() is (expected[0][2] if expected else None)
        assert all(a is b for a, (_, _, b) in zip(queue, expected, strict=True))


async def test_the_smallest_turn_goes_first_whenever_it_came() -> None:
    lane, hold, done = Lane("test", 1), _Hold(), list[float]()
    first = asyncio.create_task(lane.run(_turn(9), hold))
    await _settle()
    waiting = [
        asyncio.create_task(lane.run(_turn(order), partial(done.append, order)))
        for order in (5, 3, 8, 1)
    ]
    await _settle()
    hold.release.set()
    await asyncio.gather(first, *waiting)
    assert done == [1, 3, 5, 8]
    assert await lane.close(10)


async def test_of_two_requests_with_one_deadline_the_older_goes_first() -> None:
    lane, hold, done = Lane("test", 1), _Hold(), list[int]()
    first = asyncio.create_task(lane.run((0, 0), hold))
    await _settle()
    waiting = [
        asyncio.create_task(lane.run((7.0, arrival), partial(done.append, arrival)))
        for arrival in (2, 1, 3)
    ]
    await _settle()
    hold.release.set()
    await asyncio.gather(first, *waiting)
    assert done == [1, 2, 3]
    assert await lane.close(10)


async def test_a_request_keeps_the_lane_for_its_next_step_while_younger_ones_wait() -> None:
    lane, ran = Lane("test", 1), list[str]()

    async def request(order: int) -> None:
        for step in "abc":
            await lane.run(_turn(order), partial(ran.append, f"{order}{step}"))

    await asyncio.gather(request(0), request(1))
    assert ran == ["0a", "0b", "0c", "1a", "1b", "1c"]
    assert await lane.close(10)


async def test_before_and_after_are_called_in_the_loop_around_the_work() -> None:
    lane, hold, seen = Lane("test", 1), _Hold(), list[tuple[str, str]]()

    def note(what: str, _error: BaseException | None = None) -> None:
        seen.append((what, threading.current_thread().name))

    first = asyncio.create_task(lane.run(_turn(0), hold))
    await _settle()
    second = asyncio.create_task(
        lane.run(
            _turn(1),
            partial(note, "work"),
            before=partial(note, "before"),
            after=partial(note, "after"),
        )
    )
    await _settle()
    assert seen == []
    hold.release.set()
    await asyncio.gather(first, second)
    loop = threading.current_thread().name
    assert seen == [("before", loop), ("work", "test_0"), ("after", loop)]
    assert await lane.close(10)


async def test_before_can_call_the_work_off_and_the_lane_goes_on() -> None:
    lane, ran, ended = Lane("test", 1), list[str](), list[object]()

    def refuse() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await lane.run(_turn(0), partial(ran.append, "refused"), before=refuse, after=ended.append)
    await lane.run(_turn(1), partial(ran.append, "next"))
    assert ran == ["next"]
    assert ended == []
    assert await lane.close(10)


async def test_a_cancelled_caller_loses_its_place() -> None:
    lane, hold, ran = Lane("test", 1), _Hold(), list[str]()
    first = asyncio.create_task(lane.run(_turn(0), hold))
    await _settle()
    gone = asyncio.create_task(lane.run(_turn(1), partial(ran.append, "gone")))
    stays = asyncio.create_task(lane.run(_turn(2), partial(ran.append, "stays")))
    await _settle()
    gone.cancel()
    hold.release.set()
    await asyncio.gather(first, stays)
    assert ran == ["stays"]
    assert gone.cancelled()
    assert await lane.close(10)


@pytest.mark.parametrize("iterations", [2, 3])
async def test_a_turn_that_comes_as_its_caller_is_cancelled_is_passed_on(iterations: int) -> None:
    lane, hold, ran = Lane("test", 1), _Hold(), list[str]()
    gone: asyncio.Task[None]

    def leave(_error: BaseException | None) -> None:
        # In the next iteration the first caller goes on; the lane is released in the second, and in
        # the third the next in line would take its turn up.
        _in_iterations(iterations, lambda: gone.cancel())

    first = asyncio.create_task(lane.run(_turn(0), hold, after=leave))
    await hold.until_entered()
    gone = asyncio.create_task(lane.run(_turn(1), partial(ran.append, "gone")))
    stays = asyncio.create_task(lane.run(_turn(2), partial(ran.append, "stays")))
    await _settle()
    hold.release.set()
    await asyncio.gather(first, stays)
    await lane.run(_turn(3), partial(ran.append, "later"))
    assert ran == ["stays", "later"]
    assert gone.cancelled()
    assert await lane.close(10)


async def test_work_leaves_the_lane_when_its_time_to_wait_is_over() -> None:
    lane, hold, ran = Lane("test", 1), _Hold(), list[str]()
    first = asyncio.create_task(lane.run(_turn(0), hold))
    await _settle()
    with pytest.raises(TurnExpired):
        await lane.run(_turn(1), partial(ran.append, "late"), expires_in=0.001)
    patient = asyncio.create_task(
        lane.run(_turn(2), partial(ran.append, "patient"), expires_in=60.0)
    )
    await _settle()
    hold.release.set()
    await asyncio.gather(first, patient)
    assert ran == ["patient"]
    assert await lane.close(10)


async def test_work_whose_time_is_over_is_not_started_in_a_free_lane() -> None:
    lane, ran = Lane("test", 1), list[str]()
    with pytest.raises(TurnExpired):
        await lane.run(_turn(0), partial(ran.append, "late"), expires_in=-0.001)
    await lane.run(_turn(0), partial(ran.append, "just in time"), expires_in=0.0)
    assert ran == ["just in time"]
    assert await lane.close(10)


async def test_work_in_progress_keeps_its_thread_after_its_caller_left() -> None:
    lane, ran, ended = Lane("test", 1), list[str](), list[BaseException | None]()
    hold = _Hold(partial(ran.append, "first"))
    first = asyncio.create_task(lane.run(_turn(0), hold, after=ended.append))
    await hold.until_entered()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(lane.run(_turn(1), partial(ran.append, "second")))
    await _settle()
    assert ran == []
    hold.release.set()
    await second
    assert ran == ["first", "second"]
    assert ended == [None]
    assert await lane.close(10)


async def test_a_failure_that_nobody_waits_for_is_not_printed() -> None:
    lane, said, ended = Lane("test", 1), list[str](), list[BaseException | None]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(str(context)))
    error = ValueError("nobody listens")

    def fail() -> None:
        raise error

    hold = _Hold(fail)
    left = asyncio.create_task(lane.run(_turn(0), hold, after=ended.append))
    await hold.until_entered()
    left.cancel()
    await asyncio.gather(left, return_exceptions=True)
    hold.release.set()
    await lane.run(_turn(1), lambda: None)
    del left
    gc.collect()
    await _settle()
    assert said == []
    assert ended == [error]
    assert await lane.close(10)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_work_that_would_end_its_thread_fails_as_a_dead_engine(error: BaseException) -> None:
    lane = Lane("test", 1)

    def leave() -> None:
        raise error

    with pytest.raises(EngineDead, match=f"{type(error).__name__} in thread test_0"):
        await lane.run(_turn(0), leave)
    assert await lane.run(_turn(0), lambda: "the lane goes on") == "the lane goes on"
    assert await lane.close(10)


async def test_a_stop_iteration_reaches_the_caller() -> None:
    lane = Lane("test", 1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await lane.run(_turn(0), lambda: next(iter(())))
    assert await lane.close(10)


class _Killed(BaseException):
    """What a test throws into a thread from outside."""


async def test_a_thread_that_is_killed_between_works_fails_the_next_one() -> None:
    lane, idents = Lane("test", 1), list[int]()
    await lane.run(_turn(0), lambda: idents.append(threading.get_ident()))
    killed = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(idents[0]), ctypes.py_object(_Killed)
    )
    assert killed == 1
    ended: list[BaseException | None] = []
    # The thread sleeps until it receives this work, and dies before it begins.
    with pytest.raises(EngineDead, match="thread test_0 ended: _Killed"):
        await lane.run(_turn(1), lambda: None, after=ended.append)
    assert [type(error) for error in ended] == [EngineDead]
    assert await lane.run(_turn(2), lambda: threading.current_thread().name) == "test_1"
    assert await lane.close(10)


async def test_a_thread_that_cannot_be_prepared_fails_its_work() -> None:
    def refuse() -> None:
        raise OSError("no such device")

    lane = Lane("test", 1, prepare=refuse)
    for thread in ("test_0", "test_1"):
        with pytest.raises(EngineDead, match=f"thread {thread} ended: OSError: no such device"):
            await lane.run(_turn(0), lambda: None)
    assert await lane.close(10)


async def test_each_thread_is_prepared_once_before_its_first_work() -> None:
    prepared: list[str] = []
    lane = Lane("test", 1, prepare=lambda: prepared.append(threading.current_thread().name))
    assert prepared == []
    for _ in range(2):
        await lane.run(_turn(0), lambda: None)
    assert prepared == ["test_0"]
    assert await lane.close(10)


async def test_as_many_run_at_once_as_there_are_workers() -> None:
    lane, together = Lane("test", 2), threading.Barrier(2, timeout=10)
    await asyncio.gather(*(lane.run(_turn(n), together.wait) for n in range(4)))
    assert await lane.close(10)


async def test_closing_waits_for_running_work_at_most_as_long_as_told() -> None:
    lane, hold = Lane("test", 1), _Hold(lambda: "done")
    running = asyncio.create_task(lane.run(_turn(0), hold))
    await hold.until_entered()
    waiting = asyncio.create_task(lane.run(_turn(1), lambda: None))
    await _settle()
    assert not await lane.close(0.01)
    with pytest.raises(EngineDead, match="the test lane is closed"):
        await waiting
    with pytest.raises(EngineDead, match="the test lane is closed"):
        await lane.run(_turn(2), lambda: None)
    hold.release.set()
    assert await running == "done"
    assert await lane.close(10)


async def test_threads_are_daemons() -> None:
    lane = Lane("test", 1)
    assert await lane.run(_turn(0), lambda: threading.current_thread().daemon)
    assert await lane.close(10)


class _Tensor:
    """Stands for what a failed step had on the device."""


async def test_what_failed_work_held_is_freed_with_its_error() -> None:
    lane, held = Lane("test", 1), list[weakref.ref[_Tensor]]()

    def fail() -> None:
        tensor = _Tensor()
        held.append(weakref.ref(tensor))
        raise ValueError("bad shape")

    gc.disable()  # It would hide a cycle.
    try:
        try:
            await lane.run(_turn(0), fail)
        except ValueError:
            assert held[0]() is not None
        # By the end of the next work, the thread has left the last one behind.
        await lane.run(_turn(0), lambda: None)
        assert held[0]() is None
    finally:
        gc.enable()
    assert await lane.close(10)


async def test_an_idle_thread_holds_nothing_of_its_last_work() -> None:
    lane = Lane("test", 1)
    tensor = _Tensor()
    held = weakref.ref(tensor)
    result = await lane.run(_turn(0), partial(lambda value: value, tensor))
    del tensor, result
    # By the end of the next work, the thread has left the last one behind.
    await lane.run(_turn(0), lambda: None)
    assert held() is None
    assert await lane.close(10)
