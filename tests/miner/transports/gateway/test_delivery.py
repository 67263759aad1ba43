"""What follows each answer to a result: exactly the repetitions that are of use."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from protocol.gateway import BEING_PROCESSED
from tests.support.fake_gateway import (
    CLOSED,
    CUT_OFF,
    GONE,
    NOT_SENT,
    STALE,
    UNASSIGNED,
    begin,
    fault,
    task,
    working,
)
from tests.support.fakes import ball_spz
from tests.support.virtual_time import in_virtual_time

pytestmark = pytest.mark.usefixtures("inline")

BUSY = fault(503, f"Service unavailable: {BEING_PROCESSED}")
LIMITED = fault(429)
LIMITED_17 = fault(429, retry_after_s=17.0)
ERROR = fault(500, "Internal Server Error")


@pytest.mark.parametrize(
    ("answers", "waits", "ending"),
    [
        ([None], [], "delivered"),
        ([fault(404)], [], "refused"),
        ([fault(307)], [], "refused"),
        ([CLOSED], [], "refused"),
        # The clock may be the reason: the key was taken when the task was. Once.
        ([STALE, None], [0.0], "delivered"),
        ([STALE, STALE], [0.0], "refused"),
        ([STALE, CUT_OFF, STALE], [0.0, 1.0], "refused"),
        ([UNASSIGNED], [], "gone"),
        ([GONE], [], "gone"),
        # The limiter counts in minutes.
        ([LIMITED, None], [60.0], "delivered"),
        ([LIMITED_17, None], [17.0], "delivered"),
        ([BUSY, BUSY, None], [1.0, 2.0], "delivered"),
        # Not stored, as far as is known: again, with a growing pause.
        ([ERROR, None], [1.0], "delivered"),
        ([CUT_OFF, CUT_OFF, CUT_OFF, None], [1.0, 2.0, 4.0], "delivered"),
        ([NOT_SENT, None], [1.0], "delivered"),
        # The first attempt had arrived.
        ([CUT_OFF, UNASSIGNED], [1.0], "delivered"),
        ([ERROR, UNASSIGNED], [1.0], "delivered"),
        ([CUT_OFF, GONE], [1.0], "gone"),
        ([NOT_SENT, UNASSIGNED], [1.0], "gone"),
        ([LIMITED, UNASSIGNED], [60.0], "gone"),
    ],
)
@in_virtual_time
async def test_a_result_is_sent_again_only_where_that_is_of_use(
    tmp_path: Path, answers: list[Any], waits: list[float], ending: str
) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls, worker.calls.answers = [task()], list(answers)
        worker.calls.call_s = 0.0
        await begin(worker)
        await asyncio.sleep(300.0)
        sent = worker.calls.sent
        assert [b[0] - a[0] for a, b in pairwise(sent)] == pytest.approx(waits, abs=0.01)
        assert len(sent) == len(waits) + 1
        assert {asset for *_, asset, _ in sent} == {ball_spz()}  # The same result each time.
        assert worker.ended == [("t-1", ending)]
        assert worker.saved().tasks == ()


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize(("again", "ending"), [(False, "reported"), (True, "refused")])
@in_virtual_time
async def test_a_result_that_is_refused_is_reported_as_failed_once(
    tmp_path: Path, status: int, again: bool, ending: str
) -> None:
    refusal = fault(status, "Bad request: too large")
    async with working(tmp_path) as worker:
        worker.calls.polls = [task()]
        worker.calls.answers = [refusal, refusal if again else None]
        await begin(worker)
        await asyncio.sleep(300.0)
        (_, *_, first, _), (_, *_, then, reason) = worker.calls.sent
        assert (first, then) == (ball_spz(), None)
        assert reason == f"the gateway refused the result: eu.example answered {status}"
        assert worker.ended == [("t-1", ending)]


@in_virtual_time
async def test_a_failure_that_had_arrived_is_reported_and_not_delivered(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task(prompt=" ")]
        worker.calls.answers = [CUT_OFF, UNASSIGNED]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert worker.ended == [("t-1", "reported")]


@in_virtual_time
async def test_a_result_is_given_up_when_the_task_s_life_must_be_over(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls, worker.calls.answers = [task()], [CUT_OFF] * 1000
        await begin(worker)
        await asyncio.sleep(700.0)
        times = [at for at, *_ in worker.calls.sent]
        assert 540.0 < times[-1] - times[0] < 600.0
        assert max(b - a for a, b in pairwise(times)) < 31.0
        assert worker.ended == [("t-1", "lost")]
        assert worker.saved().tasks == ()


@in_virtual_time
async def test_no_minute_has_more_results_than_the_limit(tmp_path: Path) -> None:
    async with working(tmp_path, results_per_minute=10) as worker:
        worker.calls.polls = [task(f"t-{n}", prompt=" ") for n in range(40)]
        worker.nodes.gave = lambda *values: None  # type: ignore[method-assign]
        await begin(worker)
        await asyncio.sleep(300.0)
        times = [at for at, *_ in worker.calls.sent]
        assert len(times) == 40
        for first in times:
            assert sum(first <= at < first + 60.0 for at in times) <= 10


@in_virtual_time
async def test_the_time_of_an_upload_is_learned_from_results_that_are_taken_at_once(
    tmp_path: Path,
) -> None:
    async with working(tmp_path) as worker:
        learned: list[tuple[str, int, float]] = []
        worker.service.delivered = lambda *values: learned.append(values)  # type: ignore[method-assign]
        worker.calls.polls = [task("t-1"), task("t-2"), task("t-3", prompt=" ")]
        worker.calls.answers = [None, CUT_OFF]
        worker.calls.call_s = 0.4
        await begin(worker)
        await asyncio.sleep(60.0)
        assert len(worker.ended) == 3
        ((transport, size, seconds),) = learned
        assert (transport, size) == ("gateway", len(ball_spz()))
        assert seconds == pytest.approx(0.4)


@in_virtual_time
async def test_an_unexpected_error_settles_the_task(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls, worker.calls.answers = [task()], [ValueError("surprise")]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert worker.ended == [("t-1", "lost")]
        assert worker.saved().tasks == ()


@in_virtual_time
async def test_what_cannot_be_delivered_before_the_end_stays_in_the_book(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls, worker.calls.answers = [task()], [CUT_OFF] * 1000
        await begin(worker)
        await asyncio.sleep(20.0)
        await worker.service.drain()
        await worker.transport.close()
        assert [kept.id for kept in worker.saved().tasks] == ["t-1"]
        assert worker.ended == []
