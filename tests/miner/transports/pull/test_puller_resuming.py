"""Tasks of an earlier run, and tasks that are not done when the miner stops."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from generation.errors import EngineDead
from miner.chain.metagraph import Snapshot
from miner.entry import Watch
from miner.request import Answer, Request
from miner.transports.pull.state import AssignedTask
from tests.support.fake_validators import (
    START,
    Pulling,
    StartPulling,
    a_while,
    text,
)
from tests.support.fakes import ball_spz


def assigned(**fields: Any) -> Callable[[Pulling], None]:
    values = {
        "validator": "5V",
        "id": "t-0",
        "kind": "text",
        "prompt": "a cube",
        "assigned_at": START - 100.0,
        "starts": 1,
        **fields,
    }

    def prepare(pulling: Pulling) -> None:
        empty = pulling.file.load()
        pulling.file.save(empty.model_copy(update={"tasks": (AssignedTask(**values),)}))

    return prepare


@pytest.mark.parametrize(
    ("fields", "asset", "sleeps"),
    [
        ({}, True, []),
        ({"starts": 2}, False, []),
        ({"submitted_at": START - 10.0}, True, [21.0]),
        ({"submitted_at": START - 50.0}, True, []),
    ],
)
async def test_a_task_of_an_earlier_run_is_resumed_without_a_second_pull(
    start_pulling: StartPulling, fields: dict[str, Any], asset: bool, sleeps: list[float]
) -> None:
    async with start_pulling(assigned(**fields)) as pulling:
        await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-0", ball_spz() if asset else b"")]
        assert pulling.time.sleeps == sleeps
        assert pulling.calls.pulled == 0
    assert pulling.file.load().tasks == ()


async def test_a_task_whose_validator_has_left_is_reported(start_pulling: StartPulling) -> None:
    async with start_pulling(assigned(validator="5Gone")) as pulling:
        (feedback,) = await pulling.settled()
        assert (feedback["caller"], feedback["fate"]) == ("5Gone", "unknown")
        assert pulling.calls.submitted == []


async def test_a_reading_that_lacks_the_validator_for_once_loses_no_result(
    start_pulling: StartPulling,
) -> None:
    def prepare(pulling: Pulling) -> None:
        assigned()(pulling)
        whole, pulling.chain.snapshot = pulling.chain.snapshot, Snapshot({}, START)

        def read_again() -> None:
            pulling.chain.snapshot = whole

        pulling.time.on_sleep = read_again

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == "accepted"
        assert pulling.calls.submitted == [("5V", "t-0", ball_spz())]


def pull_and_hold(pulling: Pulling) -> None:
    pulling.engine.hold_at = "splats"
    pulling.calls.pulls = [text()]


async def drain_while_held(pulling: Pulling) -> asyncio.Task[None]:
    await pulling.engine.holding.wait()
    return asyncio.create_task(pulling.service.drain())


async def test_a_task_that_is_not_done_when_the_miner_stops_is_kept_for_the_next_start(
    start_pulling: StartPulling,
) -> None:
    entered, over = asyncio.Event(), asyncio.Event()

    async def late(request: Request, *, watch: Watch | None = None) -> Answer:
        entered.set()
        await over.wait()
        return Answer("dropped", "deadline_passed", "not done after 29.00 s", request.task.id)

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        pulling.service.handle = late  # type: ignore[method-assign]

    async with start_pulling(prepare) as pulling:
        await entered.wait()
        await pulling.service.drain()
        over.set()
        await a_while()
    (kept,) = pulling.file.load().tasks
    assert (kept.id, kept.starts, kept.submitted_at) == ("t-1", 0, None)
    assert pulling.calls.submitted == []


async def test_a_task_whose_generation_ends_the_process_is_tried_once_more(
    start_pulling: StartPulling,
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        pulling.engine.error_at = "splats"
        pulling.engine.error = EngineDead("splats lost the device")

    async with start_pulling(prepare) as pulling:
        await pulling.service.died.wait()
        await pulling.service.drain()
    (kept,) = pulling.file.load().tasks
    assert (kept.id, kept.starts, kept.submitted_at) == ("t-1", 1, None)
    assert pulling.calls.submitted == []


async def test_a_result_that_is_ready_when_the_miner_stops_is_delivered(
    start_pulling: StartPulling,
) -> None:
    async with start_pulling(pull_and_hold) as pulling:
        draining = await drain_while_held(pulling)
        pulling.engine.release.set()
        await draining
    assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
    assert pulling.file.load().tasks == ()
