"""The worker without a network: what it takes, makes, delivers and reports, in virtual time."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from generation.errors import GenerationError
from generation.scoring.validity import Check, ValidityReport
from miner.request import Answer, Caller, Request
from protocol.gateway import TasksAnswer
from protocol.tasks import TextTask
from tests.support.fake_gateway import (
    CLOSED,
    CUT_OFF,
    EU,
    STALE,
    US,
    Working,
    begin,
    fault,
    node,
    task,
    working,
)
from tests.support.fakes import FakeEngine, ball_spz
from tests.support.virtual_time import clock, in_virtual_time

pytestmark = pytest.mark.usefixtures("inline")


@in_virtual_time
async def test_a_task_is_taken_made_and_delivered(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task(seed=-5)]
        await begin(worker)
        await asyncio.sleep(10.0)
        ((_, *sent),) = worker.calls.sent
        assert sent == ["t-1", "token of t-1", ball_spz(), ""]
        (taken,) = worker.events("taken")
        assert (taken["task_id"], taken["node"], taken["kind"]) == ("t-1", "eu.example", "text")
        (answered,) = worker.events("answered")
        assert (answered["transport"], answered["caller"]) == ("gateway", "gateway")
        assert (answered["outcome"], answered["task_id"]) == ("completed", "t-1")
        (delivered,) = worker.events("delivered")
        assert (delivered["ending"], delivered["attempts"]) == ("delivered", 1)
        assert delivered["bytes"] == len(ball_spz())
        assert delivered["turnaround_s"] == pytest.approx(5.3, abs=0.1)
        assert "red car" not in worker.log.path.read_text()
        assert worker.saved().tasks == ()
    assert worker.calls.closed


@in_virtual_time
async def test_a_task_is_on_disk_before_anything_is_done_with_it(tmp_path: Path) -> None:
    noted: list[list[str]] = []

    class Watched(FakeEngine):
        async def run(self, *args: Any, **arguments: Any) -> Any:
            noted.append([kept.id for kept in worker.saved().tasks])
            return await super().run(*args, **arguments)

    async with working(tmp_path, engine=Watched()) as worker:
        worker.calls.polls = [task()]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert noted == [["t-1"]]
        assert "red car" not in worker.file._path.read_text()
        assert worker.saved().tasks == ()


@in_virtual_time
async def test_nothing_is_done_with_a_task_while_a_slow_disk_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(tmp_path) as worker:
        book = worker.transport._book
        add = book.add

        async def slowly(tasks: Any) -> None:
            await asyncio.sleep(3.0)
            await add(tasks)

        monkeypatch.setattr(book, "add", slowly)
        worker.calls.polls = [task()]
        await begin(worker)
        await asyncio.sleep(2.0)
        assert len(worker.calls.asked) == 1
        assert worker.events("taken") == []
        await asyncio.sleep(10.0)
        assert worker.ended == [("t-1", "delivered")]


@in_virtual_time
async def test_only_as_many_tasks_are_asked_for_as_can_be_started_at_once(tmp_path: Path) -> None:
    async with working(tmp_path, workers=3) as worker:
        worker.engine.hold_at = "return"
        worker.calls.polls = [task("t-1"), TasksAnswer((task("t-2"), task("t-3")))]
        await begin(worker)
        await asyncio.sleep(20.0)
        assert [count for _, _, count in worker.calls.asked] == [3, 2]
        worker.engine.release.set()
        await asyncio.sleep(1.0)
        assert worker.calls.asked[2][2] == 3
        assert len(worker.calls.sent) == 3


@in_virtual_time
async def test_another_transport_s_request_takes_a_place(tmp_path: Path) -> None:
    async with working(tmp_path, workers=1) as worker:
        worker.engine.hold_at = "return"
        await begin(worker)
        await asyncio.sleep(0.2)
        other = Request(TextTask(id="o", prompt="p"), Caller("local"), "http", clock())
        answer = asyncio.create_task(worker.service.handle(other))
        await asyncio.sleep(10.0)
        asked = len(worker.calls.asked)
        assert asked <= 1
        worker.engine.release.set()
        assert (await answer).outcome == "completed"
        await asyncio.sleep(10.0)
        assert len(worker.calls.asked) > asked


@in_virtual_time
async def test_nothing_is_asked_before_the_service_is_ready_and_while_it_drains(
    tmp_path: Path,
) -> None:
    async with working(tmp_path) as worker:
        await worker.transport.serve()
        await asyncio.sleep(30.0)
        assert worker.calls.asked == []
        await worker.service.start()
        await asyncio.sleep(2.0)
        assert worker.calls.asked
        await worker.service.drain()
        asked = len(worker.calls.asked)
        await asyncio.sleep(60.0)
        assert len(worker.calls.asked) == asked


@in_virtual_time
async def test_a_task_that_comes_while_the_miner_stops_is_reported(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task()]
        worker.calls.call_s = 1.0
        await begin(worker)
        await asyncio.sleep(0.5)  # The call is under way.
        await worker.service.drain()
        await worker.transport.close()
        ((_, task_id, _, asset, reason),) = worker.calls.sent
        assert (task_id, asset) == ("t-1", None)
        assert "dropped" in reason
        assert worker.ended == [("t-1", "reported")]


@in_virtual_time
async def test_a_stop_delivers_what_is_admitted(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task()]
        await begin(worker)
        await asyncio.sleep(2.0)
        await worker.service.drain()
        await worker.transport.close()
        assert worker.ended == [("t-1", "delivered")]


INVALID = ValidityReport((Check("gaussians", False, 10.0, 7000.0, "too few"),), ())


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("dropped", "dropped (p98 0.0 queue"),
        ("failed", "failed (no surface"),
        ("rejected", "rejected (prompt is empty"),
        ("unreadable", "rejected (its prompt cannot be read"),
        ("invalid", "would not pass the validator's checks"),
        ("gated", "gated, its score 0.300 is below 0.600"),
        ("error", "failed (unexpected RuntimeError"),
    ],
)
@in_virtual_time
async def test_what_is_not_worth_delivering_is_reported_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    engine = FakeEngine(worth=(lambda task: 0.3) if how == "gated" else None)
    async with working(tmp_path, engine=engine) as worker:
        given: Any = task(prompt=" " if how == "rejected" else "a red car")
        if how == "unreadable":
            from protocol.gateway import read_tasks

            given = read_tasks(b'{"tasks": [{"id": "t-1", "prompt": 7}]}')
        worker.calls.polls = [given]
        if how == "dropped":
            engine.seconds["splats"] = 60.0
        if how == "failed":
            engine.error_at, engine.error = "splats", GenerationError("no surface")
        if how == "invalid":
            monkeypatch.setattr("tests.support.fakes.check", lambda cloud: INVALID)
        if how == "error":

            async def broken(*args: Any, **arguments: Any) -> Answer:
                raise RuntimeError("a secret prompt")

            monkeypatch.setattr(worker.service, "handle", broken)
        await begin(worker)
        await asyncio.sleep(30.0)
        ((_, task_id, _, asset, reason),) = worker.calls.sent
        assert (task_id, asset) == ("t-1", None)
        assert words in reason
        assert "red car" not in reason
        assert "secret" not in reason
        assert worker.ended == [("t-1", "reported")]
        assert worker.saved().tasks == ()


@in_virtual_time
async def test_a_budget_of_the_gateway_s_is_kept(tmp_path: Path) -> None:
    async with working(tmp_path, budget_s=4.0) as worker:
        worker.calls.polls = [task()]
        await begin(worker)
        await asyncio.sleep(10.0)
        (answered,) = worker.events("answered")
        assert answered["reason_code"] == "predicted_late"
        assert answered["budget_s"] < 4.0
        assert worker.ended == [("t-1", "reported")]


@pytest.mark.parametrize("candidates", [1, 3])
@in_virtual_time
async def test_the_first_object_is_delivered_unless_candidates_are_wanted(
    tmp_path: Path, candidates: int
) -> None:
    async with working(tmp_path, candidates=candidates) as worker:
        seen: list[Request] = []
        handle = worker.service.handle

        async def watched(request: Request, **arguments: Any) -> Answer:
            seen.append(request)
            return await handle(request, **arguments)

        worker.service.handle = watched  # type: ignore[method-assign]
        worker.calls.polls = [task()]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert [request.candidates for request in seen] == [candidates]


@in_virtual_time
async def test_tasks_beyond_those_asked_for_are_reported(tmp_path: Path) -> None:
    async with working(tmp_path, workers=2) as worker:
        worker.calls.polls = [TasksAnswer(tuple(task(f"t-{n}") for n in range(5)))]
        await begin(worker)
        await asyncio.sleep(30.0)
        reports = [reason for _, _, _, asset, reason in worker.calls.sent if asset is None]
        assert len(reports) == 3
        assert all("more tasks than it asked for" in reason for reason in reports)
        assert sorted(worker.ended) == [
            ("t-0", "delivered"), ("t-1", "delivered"),
            ("t-2", "reported"), ("t-3", "reported"), ("t-4", "reported"),
        ]  # fmt: skip


@in_virtual_time
async def test_a_task_that_is_handed_out_twice_is_made_once_and_keeps_its_newest_token(
    tmp_path: Path,
) -> None:
    async with working(tmp_path, workers=2) as worker:
        again = task(assignment_token="new")
        worker.calls.polls = [task(), TasksAnswer((again, again))]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert [(sent[1], sent[2]) for sent in worker.calls.sent] == [("t-1", "new")]
        assert worker.ended == [("t-1", "delivered")]


@in_virtual_time
async def test_tasks_of_an_earlier_run_are_reported_at_once_to_their_node(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task("t-1")]
        worker.engine.hold_at = "lift"
        await begin(worker)
        await asyncio.sleep(3.0)
        state = worker.saved()
        worker.engine.release.set()
    worker.file.save(state)  # As a killed process leaves it.
    (kept,) = state.tasks
    async with working(tmp_path, addresses=(US,)) as second:
        nodes: list[str] = []
        add_result = second.calls.add_result

        async def watched(entry: Any, token: str | None, **values: Any) -> None:
            nodes.append(entry.node)
            await add_result(entry, token, **values)

        second.calls.add_result = watched  # type: ignore[method-assign,assignment]
        await second.transport.serve()  # Its models are still loading.
        await asyncio.sleep(1.0)
        ((_, task_id, token, asset, reason),) = second.calls.sent
        assert (task_id, token, asset) == ("t-1", "token of t-1", None)
        assert reason == "the worker was restarted before the result was delivered"
        assert nodes == [EU]
        assert second.saved().tasks == ()
    assert (kept.node, kept.worker_id) == (EU, "worker")


@in_virtual_time
async def test_no_task_is_taken_while_too_many_results_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("miner.transports.gateway.worker.MAX_UNDELIVERED", 4)
    async with working(tmp_path) as worker:
        worker.calls.polls = [task(f"t-{n}") for n in range(10)]
        worker.engine.seconds = dict.fromkeys(worker.engine.seconds, 0.01)
        worker.calls.answers = [fault(429)] * 10_000
        await begin(worker)
        worker.nodes.failed = lambda address, **values: 0.0  # type: ignore[method-assign]
        await asyncio.sleep(120.0)
        assert len(worker.saved().tasks) == 4
        worker.calls.answers = []
        await asyncio.sleep(100.0)
        assert len(worker.ended) == 10
        assert {ending for _, ending in worker.ended} == {"delivered"}


@in_virtual_time
async def test_a_node_whose_deliveries_fail_is_not_asked_for_more(tmp_path: Path) -> None:
    async with working(tmp_path, addresses=(EU, US)) as worker:
        worker.calls.polls = [task()]
        worker.calls.answers = [fault(500)] * 6
        await begin(worker)
        await asyncio.sleep(5.5)
        first = worker.calls.asked[0][1]
        before = len(worker.calls.asked)
        await asyncio.sleep(15.0)
        assert first not in {address for _, address, _ in worker.calls.asked[before:]}


@in_virtual_time
async def test_calls_are_1_to_2_s_apart_then_5_to_10_and_longer_after_errors(
    tmp_path: Path,
) -> None:
    async with working(tmp_path) as worker:
        await begin(worker)
        await asyncio.sleep(120.0)
        times = [at for at, _, _ in worker.calls.asked]
        assert min(b - a for a, b in pairwise(times)) >= 1.0
        assert 5.0 <= times[-1] - times[-2] <= 10.0
        worker.calls.polls = [CUT_OFF] * 8
        worker.calls.asked.clear()
        await asyncio.sleep(600.0)
        pauses = [b - a for (a, _, _), (b, _, _) in pairwise(worker.calls.asked)]
        assert pauses[:8] == pytest.approx([2.1, 4.1, 8.1, 16.1, 32.1, 64.1, 128.1, 256.1], abs=0.1)


@in_virtual_time
async def test_a_node_that_is_found_in_a_list_is_asked_if_that_is_wanted(tmp_path: Path) -> None:
    async with working(tmp_path, discover=True) as worker:
        worker.calls.polls = [TasksAnswer(gateways=(node(US, 3),)), task()]
        await begin(worker)
        await asyncio.sleep(10.0)
        assert [address for _, address, _ in worker.calls.asked[:2]] == [EU, US]
        assert worker.events("taken")[0]["node"] == "us.example"


@in_virtual_time
async def test_a_signature_that_is_too_old_is_made_again_once(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [STALE, task(), STALE, STALE]
        await begin(worker)
        await asyncio.sleep(0.8)
        assert len(worker.calls.asked) == 2
        assert worker.saved().tasks
        await asyncio.sleep(15.0)
        assert len(worker.calls.asked) == 4  # The second refusal in a row is one.


async def asked_with(worker: Working, *answers: Any, seconds: float) -> None:
    worker.calls.polls = list(answers)
    await begin(worker)
    await asyncio.sleep(seconds)


@in_virtual_time
async def test_a_closed_whitelist_is_asked_again_rarely(tmp_path: Path) -> None:
    async with working(tmp_path) as worker:
        await asked_with(worker, *[CLOSED] * 1000, seconds=3600.0)
        assert 8 <= len(worker.calls.asked) <= 20
