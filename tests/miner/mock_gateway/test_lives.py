"""Copies, life times and statuses of the mock gateway's tasks."""

import pytest

from miner.mock_gateway.node import MockCluster, MockNode
from tests.support.fakes import Clock
from tests.support.mock_gateway import (
    ALICE,
    BOB,
    CAROL,
    GatewayWorker,
    answered,
    cluster,
    status,
    submit,
)


@pytest.fixture
def gateway(clock: Clock) -> MockCluster:
    """Three copies of a task, as published."""
    return cluster(clock, copies=3)


@pytest.fixture
def bob(node: MockNode, clock: Clock) -> GatewayWorker:
    return GatewayWorker(node, clock, BOB, "bob-1")


@pytest.fixture
def carol(node: MockNode, clock: Clock) -> GatewayWorker:
    return GatewayWorker(node, clock, CAROL, "carol-1")


def test_a_hotkey_gets_one_copy_under_every_worker_id_and_other_hotkeys_the_rest(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, carol: GatewayWorker, clock: Clock
) -> None:
    submit(node)
    assert len(alice.take(10)) == 1
    assert alice.take(10, worker_id="alice-2") == []
    assert len(bob.take()) == len(carol.take()) == 1
    assert GatewayWorker(node, clock, "5Dave").take() == []
    assert node.store.queued == 0


def test_a_copy_that_is_queued_again_stays_closed_to_its_hotkey(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, carol: GatewayWorker, clock: Clock
) -> None:
    task_id = submit(node)
    for worker in (alice, bob, carol):
        worker.take()
    node.store.give_back(task_id, ALICE, to_the_same=False)
    assert alice.take() == []
    assert len(GatewayWorker(node, clock, "5Dave").take()) == 1


def test_nothing_is_queued_again_after_a_failure(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, clock: Clock
) -> None:
    submit(node)
    (task,) = alice.take()
    alice.add_result(task, status="failure")
    assert alice.take() == []
    assert len(bob.take()) == len(GatewayWorker(node, clock, CAROL).take()) == 1
    assert GatewayWorker(node, clock, "5Dave").take() == []


def test_the_status_goes_from_no_result_to_the_first_success(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, carol: GatewayWorker
) -> None:
    task_id = submit(node)
    assert status(node, task_id) == {"status": "NoResult"}
    (first,) = alice.take()
    assert status(node, task_id) == {"status": "InProgress"}
    alice.add_result(first, status="failure", reason="failed")
    assert status(node, task_id) == {"status": "PartialResult(0)"}
    (second,) = bob.take()
    bob.add_result(second)
    assert status(node, task_id) == {"status": "PartialResult(1)"}
    (third,) = carol.take()
    carol.add_result(third)
    assert status(node, task_id) == {"status": "Success", "worker_id": "bob-1"}


def test_the_status_is_the_last_failure_once_all_copies_have_failed(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, carol: GatewayWorker
) -> None:
    task_id = submit(node)
    for worker in (alice, bob, carol):
        (task,) = worker.take()
        worker.add_result(task, status="failure", reason="failed")
    assert status(node, task_id) == {"status": "Failure", "reason": "failed"}


def test_with_fewer_workers_than_copies_it_stays_partial_until_the_life_is_over(
    clock: Clock,
) -> None:
    node = cluster(clock, copies=3, result_life_s=700.0).nodes[0]
    alice = GatewayWorker(node, clock)
    task_id = submit(node)
    (task,) = alice.take()
    alice.add_result(task)
    clock.now += 599.0
    assert status(node, task_id) == {"status": "PartialResult(1)"}
    clock.now += 31.0
    assert status(node, task_id) == {"status": "Success", "worker_id": "alice-1"}


def test_an_unknown_id_has_no_result(node: MockNode) -> None:
    unknown = status(node, "123e4567-e89b-12d3-a456-426614174000")
    assert unknown == {"status": "NoResult"}


def test_a_task_that_nobody_finishes_fails_with_its_time_out(
    node: MockNode, alice: GatewayWorker, clock: Clock
) -> None:
    task_id = submit(node)
    (task,) = alice.take()
    clock.now += 630.0
    assert status(node, task_id) == {"status": "Failure", "reason": "Task timed out"}
    assert alice.add_result(task).status == 410
    assert node.store.counts[ALICE, "timeout"] == 1
    clock.now += 3600.0
    assert status(node, task_id) == {"status": "Failure", "reason": "Task timed out"}


def test_a_task_that_has_timed_out_is_not_offered_and_a_live_one_behind_it_is(
    node: MockNode, alice: GatewayWorker, clock: Clock
) -> None:
    clock.now += 5.0
    submit(node)
    clock.now += 590.0
    live = submit(node)
    clock.now += 11.0  # The node looks every 30 s: the first is dead, and still queued.
    assert node.store.queued == 2
    assert [task["id"] for task in alice.take(10)] == [live]


def test_a_result_between_the_deadline_and_the_next_check_is_taken_with_200_and_dropped(
    clock: Clock,
) -> None:
    node = cluster(clock).nodes[0]
    clock.now += 10.0
    task_id = submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    clock.now += 601.0
    for _ in range(2):
        reply = alice.add_result(task)
        assert (reply.status, reply.body) == (200, b"Ok")
    assert node.store.counts[ALICE, "dropped"] == 2
    clock.now += 20.0
    assert status(node, task_id)["status"] == "Failure"
    assert alice.add_result(task).status == 410


def test_a_task_whose_result_is_being_stored_has_5_s_of_grace(clock: Clock) -> None:
    node = cluster(clock).nodes[0]
    task_id = submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    clock.now += 599.0
    form = node.result_form()
    for name, field in alice.form(task):
        form.begin(name)
        form.end(field)
    store = form.complete()
    clock.now += 4.0
    assert status(node, task_id) == {"status": "InProgress"}
    assert store().status == 200
    assert status(node, task_id)["status"] == "Success"


def test_an_upload_that_outlasts_the_task_is_not_assigned_any_more(clock: Clock) -> None:
    node = cluster(clock).nodes[0]
    submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    form = node.result_form()
    for name, field in alice.form(task):
        form.begin(name)
        if name == "asset":
            clock.now += 700.0
        form.end(field)
    assert answered(form.complete).status == 401


def test_life_is_counted_from_the_submission_not_from_the_assignment(
    node: MockNode, alice: GatewayWorker, clock: Clock
) -> None:
    task_id = submit(node)
    clock.now += 595.0
    (task,) = alice.take()
    clock.now += 35.0
    assert status(node, task_id)["status"] == "Failure"
    assert alice.add_result(task).status == 410


def test_a_task_leaves_the_queue_after_its_queue_life(clock: Clock) -> None:
    node = cluster(clock, task_life_s=86_400.0, queue_life_s=1800.0).nodes[0]
    submit(node)
    clock.now += 1801.0
    assert node.store.queued == 0
    assert GatewayWorker(node, clock).take() == []


def test_results_are_removed_300_s_after_the_last_and_the_status_is_kept(clock: Clock) -> None:
    node = cluster(clock).nodes[0]
    task_id = submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    alice.add_result(task)
    clock.now += 299.0
    held = node.store.results(task_id)
    assert held is not None
    assert len(held[1]) == 1
    clock.now += 31.0
    held = node.store.results(task_id)
    assert held is not None
    assert held[1] == []
    assert status(node, task_id) == {"status": "Success", "worker_id": "alice-1"}


def test_results_are_removed_while_the_task_still_waits_for_other_workers(
    node: MockNode, alice: GatewayWorker, bob: GatewayWorker, clock: Clock
) -> None:
    task_id = submit(node)
    (task,) = alice.take()
    alice.add_result(task)
    clock.now += 330.0
    held = node.store.results(task_id)
    assert held is not None
    assert held[1] == []
    assert status(node, task_id) == {"status": "PartialResult(1)"}
    bob.take()
    assert status(node, task_id) == {"status": "InProgress"}
    clock.now += 300.0
    assert status(node, task_id) == {"status": "Failure", "reason": "Task timed out"}
