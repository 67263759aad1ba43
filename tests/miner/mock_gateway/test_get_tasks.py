"""What the mock's /get_tasks refuses, and which tasks it hands to a worker."""

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from miner.mock_gateway.node import MockNode
from miner.mock_gateway.rules import KeyOwner
from tests.support.fakes import Clock
from tests.support.mock_gateway import (
    ALICE,
    BOB,
    GatewayWorker,
    cluster,
    picture,
    sign,
    submit,
    value,
)

INVALID = b"Unauthorized request: Invalid worker authentication"
KNOWN = "404-3dgs, 404-mesh, 404-mesh-v2"


def test_a_task_is_handed_out_with_its_seed_and_a_token(
    node: MockNode, alice: GatewayWorker
) -> None:
    task_id = submit(node, "a red car", seed=-5, model_params={"steps": 3})
    (task,) = alice.take()
    assert task.pop("assignment_token").count("-") == 4
    assert task == {
        "id": task_id,
        "prompt": "a red car",
        "model": "404-3dgs",
        "seed": -5,
        "model_params": {"steps": 3},
    }


def test_a_picture_is_handed_out_as_it_was_uploaded(node: MockNode, alice: GatewayWorker) -> None:
    node.clients.add_form([("image", picture()), ("seed", b"7")], KeyOwner("o"))
    (task,) = alice.take()
    assert base64.b64decode(task["image"]) == picture()
    assert "prompt" not in task
    assert "model_params" not in task


def test_the_older_name_of_the_hotkey_is_taken_and_unknown_fields_are_ignored(
    node: MockNode, alice: GatewayWorker
) -> None:
    submit(node)
    tasks = alice.take(worker_hotkey=None, validator_hotkey=ALICE, stake=3)
    assert len(tasks) == 1


def test_no_more_than_was_asked_for_is_handed_out(node: MockNode, alice: GatewayWorker) -> None:
    for _ in range(3):
        submit(node)
    assert alice.take(0) == []
    assert len(alice.take(2)) == 2
    assert len(alice.take(100)) == 1


def test_a_request_for_more_than_500_counts_as_500(clock: Clock) -> None:
    node = cluster(clock).nodes[0]
    for _ in range(500):
        submit(node)
    assert len(GatewayWorker(node, clock).take(10_000)) == 500


def test_first_in_is_first_out(node: MockNode, alice: GatewayWorker) -> None:
    ids = [submit(node) for _ in range(3)]
    assert [task["id"] for task in alice.take(3)] == ids


def test_models_are_served_in_turn_and_others_are_not(node: MockNode, alice: GatewayWorker) -> None:
    for _ in range(2):
        submit(node)
    for model in (b"404-mesh", b"404-mesh-v2"):
        node.clients.add_form([("image", picture()), ("model", model)], KeyOwner("o"))
    both = alice.take(3, model=["404-3dgs", "404-mesh", "404-3dgs"])
    assert [task["model"] for task in both] == ["404-3dgs", "404-mesh", "404-3dgs"]
    assert alice.take(3, model="404-mesh") == []


def test_each_request_begins_with_the_model_after_the_last_one(
    node: MockNode, alice: GatewayWorker
) -> None:
    for _ in range(2):
        submit(node)
        node.clients.add_form([("image", picture()), ("model", b"404-mesh")], KeyOwner("o"))
    models = [alice.take(model=["404-3dgs", "404-mesh"])[0]["model"] for _ in range(4)]
    assert models == ["404-3dgs", "404-mesh"] * 2


@pytest.mark.parametrize(
    ("signed_ago", "status"), [(-3600, 401), (-1, 401), (0, 200), (30, 200), (31, 401)]
)
def test_a_timestamp_of_the_future_or_over_30_s_old_is_refused(
    alice: GatewayWorker, clock: Clock, signed_ago: int, status: int
) -> None:
    reply = alice.get_tasks(**alice.signed(clock.now - signed_ago))
    assert reply.status == status
    assert status == 200 or reply.body == INVALID


@pytest.mark.parametrize(
    "timestamp", ["1782345678", "404_GATEWAY_", "404_GATEWAY_1.5", "404_gateway_1782345678", ""]
)
def test_a_malformed_timestamp_is_400(alice: GatewayWorker, timestamp: str) -> None:
    reply = alice.get_tasks(timestamp=timestamp, signature=sign(ALICE, timestamp))
    assert (reply.status, reply.body) == (400, b"Bad request: Invalid timestamp format")


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "x" * 88,
        base64.b64encode(bytes(64)).decode(),
        base64.b64encode(bytes(63)).decode(),
        base64.b64encode(bytes(65)).decode(),
        "é" * 88,
    ],
)
def test_a_signature_that_is_not_the_hotkeys_is_401(alice: GatewayWorker, signature: str) -> None:
    reply = alice.get_tasks(signature=signature)
    assert (reply.status, reply.body) == (401, INVALID)


def test_base64_without_padding_or_for_urls_is_401(alice: GatewayWorker, clock: Clock) -> None:
    for second in range(30):
        good = alice.signed(clock.now - second)
        for changed in (good["signature"].rstrip("="), good["signature"] + "\n"):
            reply = alice.get_tasks(timestamp=good["timestamp"], signature=changed)
            assert reply.status == 401
        urls = good["signature"].translate(str.maketrans("+/", "-_"))
        if urls != good["signature"]:
            assert alice.get_tasks(**{**good, "signature": urls}).status == 401
            return
    raise AssertionError("no signature had + or /")


def test_base64_whose_last_bits_are_not_zero_is_401(alice: GatewayWorker) -> None:
    good = alice.signed()
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = letters[letters.index(good["signature"][85]) + 1]
    other = good["signature"][:85] + last + "=="
    assert base64.b64decode(other) == base64.b64decode(good["signature"])
    assert alice.get_tasks(timestamp=good["timestamp"], signature=other).status == 401


def test_another_hotkeys_signature_is_401(alice: GatewayWorker) -> None:
    reply = alice.get_tasks(worker_hotkey=BOB)
    assert (reply.status, reply.body) == (401, INVALID)


def test_a_hotkey_that_is_no_address_is_400(alice: GatewayWorker) -> None:
    reply = alice.get_tasks(worker_hotkey="0x00")
    assert reply.status == 400
    assert reply.body.startswith(b"Bad request: Invalid worker_hotkey")


def test_a_hotkey_outside_the_whitelist_is_401_before_its_signature_is_looked_at(
    clock: Clock,
) -> None:
    node = cluster(clock, whitelist=frozenset({BOB})).nodes[0]
    reply = GatewayWorker(node, clock).get_tasks(signature="")
    assert reply.status == 401
    assert reply.body == b"Unauthorized request: Worker hotkey is not whitelisted"
    assert GatewayWorker(node, clock, BOB).get_tasks().status == 200


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("x", f"Invalid value 'x'. Expected one of: {KNOWN}"),
        (["404-3dgs", "x"], f"Invalid value 'x'. Expected one of: {KNOWN}"),
        ([], "Expected at least one model"),
    ],
)
def test_an_unknown_or_an_empty_model_is_400_with_its_field(
    alice: GatewayWorker, model: Any, message: str
) -> None:
    reply = alice.get_tasks(model=model)
    assert reply.status == 400
    assert value(reply) == {"error": "invalid_field", "field": "model", "message": message}


@pytest.mark.parametrize("tag", ["", "  ", "bad tag", "x" * 33, "é", "a.b"])
def test_a_tag_of_another_form_is_400_with_its_field(alice: GatewayWorker, tag: str) -> None:
    reply = alice.get_tasks(worker_tags=["fine", tag])
    assert reply.status == 400
    assert (value(reply)["error"], value(reply)["field"]) == ("invalid_field", "worker_tags")


TAGGED = KeyOwner("company", tags=("gpu-a", "gpu-b"))


@pytest.mark.parametrize(
    ("tags", "ordinary", "tagged"),
    [
        (None, 1, 0),
        ([], 1, 0),
        (["gpu-c"], 0, 0),
        (["gpu-c", "gpu-b"], 0, 1),
        ([" GPU-A "], 0, 1),
        (["x" * 32], 0, 0),
    ],
)
def test_tags_divide_the_tasks_between_workers(
    node: MockNode, alice: GatewayWorker, tags: list[str] | None, ordinary: int, tagged: int
) -> None:
    plain, company = submit(node), submit(node, owner=TAGGED)
    taken = [task["id"] for task in alice.take(10, worker_tags=tags)]
    assert taken == [plain] * ordinary + [company] * tagged


def test_a_task_keeps_the_tags_that_its_owner_had_at_its_submission(
    node: MockNode, alice: GatewayWorker
) -> None:
    before = submit(node, owner=TAGGED)
    after = submit(node, owner=replace(TAGGED, tags=("gpu-z",)))
    assert [task["id"] for task in alice.take(10, worker_tags=["gpu-z"])] == [after]
    assert [task["id"] for task in alice.take(10, worker_tags=["gpu-a"])] == [before]


@pytest.mark.parametrize(
    "name",
    ["worker_hotkey", "worker_id", "signature", "timestamp", "requested_task_count", "model"],
)
def test_a_missing_field_is_400_that_names_it(alice: GatewayWorker, name: str) -> None:
    reply = alice.get_tasks(**{name: None})
    assert reply.status == 400
    assert reply.body == f"Bad request: missing field `{name}`".encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"worker_id": 7},
        {"requested_task_count": -1},
        {"requested_task_count": 1.0},
        {"requested_task_count": True},
        {"requested_task_count": "1"},
        {"model": 7},
        {"model": [7]},
        {"model": "\ud800"},
        {"worker_id": "\ud800"},
        {"worker_hotkey": f"{ALICE}\ud800"},
        {"worker_tags": "tag"},
        {"worker_hotkey": ALICE, "validator_hotkey": ALICE},
    ],
)
def test_a_field_of_another_type_or_given_twice_is_400(
    alice: GatewayWorker, changes: dict[str, Any]
) -> None:
    reply = alice.get_tasks(**changes)
    assert reply.status == 400
    assert reply.body.startswith(b"Bad request: ")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b'{"a":' * 800,
             b'{"\\ud800": 1, "\\ud800": 2}'],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_400(alice: GatewayWorker, body: bytes) -> None:
    reply = alice.ask(body)
    assert (reply.status, reply.body[:13]) == (400, b"Bad request: ")


def test_a_repeated_key_is_400(alice: GatewayWorker) -> None:
    body = json.dumps(alice.request()).encode()[:-1] + b', "model": "404-3dgs"}'
    reply = alice.ask(body)
    assert reply.status == 400
    assert b"duplicate field `model`" in reply.body


def test_a_body_over_4096_bytes_is_413(alice: GatewayWorker) -> None:
    padding = 4096 - len(json.dumps(alice.request(padding="")))
    assert alice.get_tasks(padding="x" * padding).status == 200
    assert alice.get_tasks(padding="x" * (padding + 1)).status == 413


def test_the_list_of_gateways_tells_what_is_queued_where_and_when_anyone_asked(
    clock: Clock,
) -> None:
    both = cluster(clock, nodes=2)
    first, second = both.nodes
    submit(second)
    clock.now += 100.7
    shown = value(GatewayWorker(first, clock).get_tasks())["gateways"]
    assert [(each["node_id"], each["domain"], each["http_port"]) for each in shown] == [
        (1, "127.0.0.1", 8094),
        (2, "127.0.0.1", 8095),
    ]
    assert [each["available_tasks"] for each in shown] == [0, 1]
    assert [each["last_task_acquisition"] for each in shown] == [int(clock.now), 0]
    assert {each["last_update"] for each in shown} == {int(clock.now)}
    assert set(shown[0]) == {
        *("node_id", "domain", "ip", "name", "http_port"),
        *("available_tasks", "last_task_acquisition", "last_update"),
    }


def test_if_the_assignment_cannot_be_stored_the_answer_is_empty_and_the_task_stays(
    node: MockNode, alice: GatewayWorker
) -> None:
    submit(node)
    body = json.dumps(alice.request()).encode()
    assert value(node.get_tasks(body, unstored=True))["tasks"] == []
    assert len(alice.take()) == 1
