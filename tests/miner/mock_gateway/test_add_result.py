"""What the mock's /add_result refuses, and what a result does."""

import json
from typing import Any

import pytest

from miner.mock_gateway.node import MockNode
from tests.support.fakes import Clock
from tests.support.mock_gateway import (
    ALICE,
    BOB,
    GatewayWorker,
    answered,
    cluster,
    sign,
    status,
    submit,
)

NOT_ASSIGNED = b"Unauthorized request: Worker hotkey is not assigned to task"
GONE = {
    "error": "task_context_unavailable",
    "message": "Task context is unavailable on this gateway after restart; the task will be "
    "refunded on timeout.",
}
NOBODY = "123e4567-e89b-12d3-a456-426614174000"
ORDER = (
    b"Bad request: Asset field must come after id, signature, timestamp, worker hotkey, worker_id, "
    b"status, and optional assignment_token fields"
)


@pytest.fixture
def task(node: MockNode, alice: GatewayWorker) -> dict[str, Any]:
    """A task that the worker has."""
    submit(node)
    (taken,) = alice.take()
    return taken


def test_a_result_is_taken_and_the_second_delivery_is_410_once_the_task_is_done(
    node: MockNode, alice: GatewayWorker, task: dict[str, Any]
) -> None:
    reply = alice.add_result(task)
    assert (reply.status, reply.body) == (200, b"Ok")
    assert status(node, task["id"]) == {"status": "Success", "worker_id": "alice-1"}
    again = alice.add_result(task)
    assert again.status == 410
    assert json.loads(again.body) == GONE


def test_a_failure_is_taken_and_its_reason_is_the_clients(
    node: MockNode, alice: GatewayWorker, task: dict[str, Any]
) -> None:
    reply = alice.add_result(task, status="failure", reason="failed")
    assert (reply.status, reply.body) == (200, b"Ok")
    assert status(node, task["id"]) == {"status": "Failure", "reason": "failed"}


def test_a_second_delivery_while_others_have_the_task_is_401(clock: Clock) -> None:
    node = cluster(clock, copies=3).nodes[0]
    submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    assert alice.add_result(task).status == 200
    again = alice.add_result(task)
    assert (again.status, again.body) == (401, NOT_ASSIGNED)


REQUIRED = ("id", "signature", "timestamp", "worker_hotkey", "worker_id", "status")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_400_at_the_end_of_a_form_without_an_asset(
    alice: GatewayWorker, task: dict[str, Any], name: str
) -> None:
    parts = [part for part in alice.form(task, status="failure") if part[0] != name]
    reply = answered(alice.node.add_result, parts)
    shown = {"worker_hotkey": "validator_hotkey or worker_hotkey"}.get(name, name)
    assert (reply.status, reply.body) == (400, f"Bad request: Missing {shown} field".encode())


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_400_where_an_asset_begins(
    alice: GatewayWorker, task: dict[str, Any], name: str
) -> None:
    reply = alice.add_result(task, **{name: None})
    assert (reply.status, reply.body) == (400, ORDER)


def test_a_success_without_an_asset_and_a_failure_without_a_reason_are_400(
    alice: GatewayWorker, task: dict[str, Any]
) -> None:
    reply = alice.add_result(task, asset=None)
    assert (reply.status, reply.body) == (400, b"Bad request: Missing asset for success")
    reply = alice.add_result(task, status="failure", reason=None)
    assert (reply.status, reply.body) == (400, b"Bad request: Missing reason for failure")


def test_a_failure_with_an_asset_is_400(alice: GatewayWorker, task: dict[str, Any]) -> None:
    reply = alice.add_result(task, status="failure", asset=b"x")
    assert reply.status == 400
    assert reply.body == b"Bad request: Asset is only allowed when status=success"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"status": "done"}, b"Invalid status"),
        ({"timestamp": "now", "signature": sign(ALICE, "now")}, b"Invalid timestamp format"),
        ({"worker_hotkey": "0x00"}, b"Invalid worker_hotkey"),
        ({"id": "7"}, b"Invalid id format"),
        ({"assignment_token": "7"}, b"Invalid assignment_token format"),
    ],
)
def test_a_value_of_another_form_is_400(
    alice: GatewayWorker, task: dict[str, Any], changes: dict[str, str], text: bytes
) -> None:
    reply = alice.add_result(task, **changes)
    assert reply.status == 400
    assert reply.body.startswith(b"Bad request: " + text)


def test_an_unknown_field_is_400(alice: GatewayWorker, task: dict[str, Any]) -> None:
    parts = [("stake", b"1"), *alice.form(task)]
    reply = answered(alice.node.add_result, parts)
    assert reply.status == 400
    assert reply.body == b"Bad request: Field error: unknown field received: stake"


def test_an_unnamed_field_is_400(alice: GatewayWorker, task: dict[str, Any]) -> None:
    reply = answered(alice.node.add_result, [(None, b"1"), *alice.form(task)])
    assert (reply.status, reply.body) == (400, b"Bad request: Unnamed field")


@pytest.mark.parametrize("name", [*REQUIRED, "assignment_token"])
def test_a_repeated_field_is_400(alice: GatewayWorker, task: dict[str, Any], name: str) -> None:
    parts = alice.form(task)
    twice = [(name, field) for known, field in parts if known == name]
    reply = answered(alice.node.add_result, [*parts[:-1], *twice, parts[-1]])
    assert (reply.status, reply.body) == (400, f"Bad request: Duplicate {name} field".encode())


def test_two_assets_two_reasons_and_both_names_of_the_hotkey_are_400(
    alice: GatewayWorker, task: dict[str, Any]
) -> None:
    parts = alice.form(task)
    for more, text in (
        ([*parts, ("asset", b"x")], b"Duplicate asset field"),
        ([("validator_hotkey", ALICE.encode()), *parts], b"Duplicate worker_hotkey field"),
        ([("reason", b"x"), ("reason", b"y"), *parts], b"Duplicate reason field"),
    ):
        reply = answered(alice.node.add_result, more)
        assert (reply.status, reply.body) == (400, b"Bad request: " + text)


def test_the_asset_must_be_the_last_part(alice: GatewayWorker, task: dict[str, Any]) -> None:
    *fields, asset = alice.form(task)
    for place in range(len(fields)):
        name = fields[place][0]
        reply = answered(alice.node.add_result, [*fields[:place], asset, *fields[place:]])
        assert (reply.status, reply.body) == (400, ORDER), name
    reply = answered(alice.node.add_result, [*fields, asset, ("reason", b"late")])
    assert (reply.status, reply.body) == (400, ORDER)
    assert answered(alice.node.add_result, [*fields, asset]).status == 200


def test_the_order_of_the_other_parts_is_free(alice: GatewayWorker, task: dict[str, Any]) -> None:
    *fields, asset = alice.form(task)
    assert answered(alice.node.add_result, [*reversed(fields), asset]).status == 200


@pytest.mark.parametrize(("reason", "code"), [("é" * 127 + "x", 200), ("é" * 128, 400)])
def test_a_reason_has_at_most_255_bytes(
    alice: GatewayWorker, task: dict[str, Any], reason: str, code: int
) -> None:
    reply = alice.add_result(task, status="failure", reason=reason)
    assert reply.status == code
    assert code == 200 or b"255 bytes" in reply.body


def test_an_asset_that_is_too_large_is_400(clock: Clock) -> None:
    node = cluster(clock, max_result_bytes=1000).nodes[0]
    submit(node)
    alice = GatewayWorker(node, clock)
    (task,) = alice.take()
    reply = alice.add_result(task, asset=bytes(1001))
    assert reply.status == 400
    assert reply.body == b"Bad request: Asset exceeds maximum allowed size (1000 bytes)"
    assert alice.add_result(task, asset=bytes(1000)).status == 200


@pytest.mark.parametrize("signed_ago", [3600, 31, -1])
def test_a_timestamp_of_the_future_or_an_hour_old_is_401(
    alice: GatewayWorker, clock: Clock, task: dict[str, Any], signed_ago: int
) -> None:
    reply = alice.add_result(task, **alice.signed(clock.now - signed_ago))
    assert reply.status == 401
    assert reply.body == b"Unauthorized request: Invalid worker authentication"


def test_the_signature_is_checked_when_the_asset_begins_so_a_slow_upload_does_not_age_it(
    node: MockNode, alice: GatewayWorker, clock: Clock, task: dict[str, Any]
) -> None:
    *fields, asset = alice.form(task)
    form = node.result_form()
    for name, field in fields:
        form.begin(name)
        form.end(field)
    form.begin("asset")
    clock.now += 300.0
    form.end(asset[1])
    assert form.complete()().status == 200


def test_the_signature_of_a_failure_is_checked_at_its_end(
    node: MockNode, alice: GatewayWorker, clock: Clock, task: dict[str, Any]
) -> None:
    form = node.result_form()
    for name, field in alice.form(task, status="failure"):
        form.begin(name)
        form.end(field)
    clock.now += 31.0
    assert answered(form.complete).status == 401


def test_another_hotkey_or_one_outside_the_whitelist_is_401(
    node: MockNode, alice: GatewayWorker, clock: Clock, task: dict[str, Any]
) -> None:
    bob = GatewayWorker(node, clock, BOB, "bob-1")
    reply = bob.add_result(task)
    assert (reply.status, reply.body) == (401, NOT_ASSIGNED)
    strict = cluster(clock, whitelist=frozenset({BOB})).nodes[0]
    reply = GatewayWorker(strict, clock).add_result(task)
    assert reply.body == b"Unauthorized request: Worker hotkey is not whitelisted"


def test_without_a_token_the_name_of_the_worker_must_be_that_of_the_assignment(
    alice: GatewayWorker, task: dict[str, Any]
) -> None:
    reply = alice.add_result(task, assignment_token=None, worker_id="alice-2")
    assert (reply.status, reply.body) == (401, NOT_ASSIGNED)
    assert alice.add_result(task, assignment_token=None).status == 200


def test_another_token_is_401(alice: GatewayWorker, task: dict[str, Any]) -> None:
    reply = alice.add_result(task, assignment_token=NOBODY)
    assert (reply.status, reply.body) == (401, NOT_ASSIGNED)


def test_a_token_that_was_replaced_is_refused_and_the_new_one_is_taken(
    node: MockNode, alice: GatewayWorker, task: dict[str, Any]
) -> None:
    node.store.give_back(task["id"], ALICE, to_the_same=True)
    (again,) = alice.take()
    assert again["assignment_token"] != task["assignment_token"]
    reply = alice.add_result(task)
    assert (reply.status, reply.body) == (401, NOT_ASSIGNED)
    assert alice.add_result(again).status == 200


@pytest.mark.parametrize("kind", ["success", "failure"])
def test_an_unknown_task_is_410(alice: GatewayWorker, kind: str) -> None:
    unknown = {"id": NOBODY, "assignment_token": NOBODY}
    reply = alice.add_result(unknown, status=kind)
    assert reply.status == 410
    assert reply.content_type.startswith("application/json")
    assert json.loads(reply.body) == GONE


def test_another_node_and_a_restarted_one_know_nothing_of_a_task(clock: Clock) -> None:
    first, second = cluster(clock, nodes=2).nodes
    submit(first)
    (task,) = GatewayWorker(first, clock).take()
    assert GatewayWorker(second, clock).add_result(task).status == 410
    first.restart()
    assert GatewayWorker(first, clock).add_result(task).status == 410


def test_a_duplicate_in_flight_is_503_and_nothing_is_counted_twice(
    node: MockNode, alice: GatewayWorker, task: dict[str, Any]
) -> None:
    form = node.result_form()
    for name, field in alice.form(task):
        form.begin(name)
        form.end(field)
    store = form.complete()
    duplicate = alice.add_result(task)
    assert duplicate.status == 503
    assert duplicate.body == (
        b"Service unavailable: Result is already being processed; please retry"
    )
    assert store().status == 200
    assert alice.add_result(task).status == 410
    assert node.store.counts[ALICE, "result_success"] == 1


def test_events_of_success_failure_and_timeout_carry_worker_and_token(
    node: MockNode, alice: GatewayWorker, clock: Clock
) -> None:
    for _ in range(3):
        submit(node)
    tasks = alice.take(3)
    assert alice.add_result(tasks[0]).status == 200
    assert alice.add_result(tasks[1], status="failure").status == 200
    clock.now += 630.0
    node.store.sweep()
    ends = [event for event in node.store.events if event.kind != "task_assigned"]
    assert [event.kind for event in ends] == ["result_success", "result_failure", "timeout"]
    assert [event.token for event in ends] == [task["assignment_token"] for task in tasks]
    assert {event.worker_id for event in ends} == {"alice-1"}
    assert {event.hotkey for event in ends} == {ALICE}
    assert ends[1].reason == "no object"
