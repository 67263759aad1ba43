"""Unexpected errors of the pull transport: whatever happens, the task is settled and work goes on.

A validator that is left busy would not be asked again before the next start.
"""

import asyncio
from typing import Any

import pytest

from miner.entry import Watch
from miner.request import Answer, Request
from miner.transports.groups import contained
from protocol.synapses import WireTask
from tests.support.fake_validators import START, Pulling, StartPulling, a_while, text
from tests.support.fakes import ball_spz

UNEXPECTED = [RuntimeError("a bug"), asyncio.CancelledError()]
IDS = ["error", "cancellation"]


async def is_asked_again(pulling: Pulling) -> bool:
    """Whether the validator brings and gets a second task once its cooldown is over."""
    settled = len(pulling.events("feedback"))
    pulling.calls.pulls.append(text("t-2"))
    pulling.time.now += 2e6  # Beyond every cooldown.
    await pulling.settled(settled + 1)
    return pulling.calls.submitted[-1] == ("5V", "t-2", ball_spz())


@pytest.mark.parametrize("error", UNEXPECTED, ids=IDS)
async def test_an_unexpected_error_of_a_pull_frees_the_validator(
    start_pulling: StartPulling, error: BaseException
) -> None:
    def prepare(pulling: Pulling) -> None:
        pull = pulling.calls.pull

        async def fails(validator: Any) -> Any:
            pulling.calls.pull = pull  # type: ignore[method-assign]
            raise error

        pulling.calls.pull = fails  # type: ignore[method-assign]

    async with start_pulling(prepare) as pulling:
        await a_while()
        assert pulling.calls.pulled == 0
        standing = pulling.saved().validators["5V"]
        assert (standing.failures, standing.ask_after) == (1, START + 60.0)
        assert await is_asked_again(pulling)


@pytest.mark.parametrize("error", UNEXPECTED, ids=IDS)
async def test_an_unexpected_error_of_a_generation_settles_the_task(
    start_pulling: StartPulling, error: BaseException
) -> None:
    def prepare(pulling: Pulling) -> None:
        handle = pulling.service.handle

        async def fails(request: Request, *, watch: Watch | None = None) -> Answer:
            pulling.service.handle = handle  # type: ignore[method-assign]
            raise error

        pulling.service.handle = fails  # type: ignore[method-assign]
        pulling.calls.pulls = [text()]

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", b"")]
        await pulling.forgotten()
        assert await is_asked_again(pulling)


@pytest.mark.parametrize("error", UNEXPECTED, ids=IDS)
async def test_an_unexpected_error_of_a_delivery_settles_the_task(
    start_pulling: StartPulling, error: BaseException
) -> None:
    def prepare(pulling: Pulling) -> None:
        submit = pulling.calls.submit

        async def fails(validator: Any, task: Any, asset: bytes) -> Any:
            pulling.calls.submit = submit  # type: ignore[method-assign]
            pulling.calls.submitted.append(("5V", task.id, b"never"))
            raise error

        pulling.calls.submit = fails  # type: ignore[method-assign]
        pulling.calls.pulls = [text()]

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == "unknown"
        await pulling.forgotten()
        assert await is_asked_again(pulling)


async def test_a_score_log_that_fails_does_not_keep_the_task(start_pulling: StartPulling) -> None:
    def prepare(pulling: Pulling) -> None:
        write = pulling.log.write

        def fails(event: str, **fields: Any) -> None:
            if event == "feedback":
                pulling.log.write = write  # type: ignore[method-assign]
                raise ValueError("not JSON")
            write(event, **fields)

        pulling.log.write = fails  # type: ignore[method-assign]
        pulling.calls.pulls = [text()]

    async with start_pulling(prepare) as pulling:
        await pulling.forgotten()
        assert await is_asked_again(pulling)


@pytest.mark.parametrize("error", [OSError("disk full"), ValueError("a bug")])
async def test_a_state_that_cannot_be_written_stops_nothing(
    start_pulling: StartPulling, error: Exception
) -> None:
    def fails(state: Any) -> None:
        raise error

    async with start_pulling() as pulling:
        await a_while()  # The start proves that the file can be written.
        pulling.file.save = fails
        pulling.calls.pulls = [text()]
        pulling.time.now += 2e6
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == "accepted"
        assert await is_asked_again(pulling)


async def test_a_task_that_the_service_puts_off_is_done_once_it_can(
    start_pulling: StartPulling,
) -> None:
    """An engine that hangs comes back; the process does not have to be started again for it."""

    def prepare(pulling: Pulling) -> None:
        handle = pulling.service.handle
        refusals = [Answer("dropped", "engine_suspect", "a stage hangs", "t-1")] * 5

        async def puts_off(request: Request, *, watch: Watch | None = None) -> Answer:
            return refusals.pop() if refusals else await handle(request)

        pulling.service.handle = puts_off  # type: ignore[method-assign]
        pulling.calls.pulls = [text()]

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == "accepted"
        assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]


async def test_a_task_that_ends_two_engines_is_not_given_to_a_third(
    start_pulling: StartPulling,
) -> None:
    handled: list[str] = []

    def prepare(pulling: Pulling) -> None:
        async def dies(request: Request, *, watch: Watch | None = None) -> Answer:
            handled.append(request.task.id)
            return Answer("failed", "engine_dead", "the engine died", request.task.id)

        pulling.service.handle = dies  # type: ignore[method-assign]
        pulling.calls.pulls = [text()]

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
        assert handled == ["t-1", "t-1"]
        assert pulling.calls.submitted == [("5V", "t-1", b"")]


async def test_a_task_that_comes_while_the_miner_stops_is_kept(
    start_pulling: StartPulling,
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    def prepare(pulling: Pulling) -> None:
        pull = pulling.calls.pull

        async def slow(validator: Any) -> Any:
            asked.set()
            await go_on.wait()
            return await pull(validator)

        pulling.calls.pulls = [text()]
        pulling.calls.pull = slow  # type: ignore[method-assign]

    async with start_pulling(prepare) as pulling:
        await asked.wait()
        closing = asyncio.create_task(pulling.transport.close())
        await a_while()
        go_on.set()
        await closing
    (kept,) = pulling.file.load().tasks
    assert (kept.id, kept.starts, kept.submitted_at) == ("t-1", 0, None)


async def test_a_task_of_an_unknown_kind_is_settled(start_pulling: StartPulling) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [WireTask(type="video", id="t-1", prompt="a cube")]

    async with start_pulling(prepare) as pulling:
        await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", b"")]


async def test_a_cancellation_from_inside_becomes_an_error() -> None:
    cancelled = asyncio.get_running_loop().create_future()
    cancelled.cancel()
    with pytest.raises(RuntimeError, match="was cancelled"):
        await contained(cancelled)


async def test_a_cancellation_from_outside_stays_one() -> None:
    task = asyncio.create_task(contained(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
