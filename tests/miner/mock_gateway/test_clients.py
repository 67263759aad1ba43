"""What the mock answers clients: keys, tasks, statuses, results."""

import io
import json
import zipfile
from dataclasses import replace
from typing import Any

import pytest

from miner.mock_gateway.client_routes import ApiKeys, origin
from miner.mock_gateway.node import MockNode
from miner.mock_gateway.replies import GatewayRefusal, GatewayReply
from miner.mock_gateway.rules import GatewayRules, KeyOwner
from protocol import ply
from tests.support.fakes import Clock, ball, ball_spz
from tests.support.mock_gateway import (
    BOB,
    KEY,
    OTHER_KEY,
    OWNER,
    GatewayWorker,
    answered,
    cluster,
    picture,
    submit,
    value,
)


def add_json(node: MockNode, **fields: Any) -> GatewayReply:
    return answered(node.clients.add_json, json.dumps(fields).encode(), OWNER)


def add_form(node: MockNode, **fields: bytes) -> GatewayReply:
    return answered(node.clients.add_form, fields.items(), OWNER)


def result(node: MockNode, task_id: str, **query: str) -> GatewayReply:
    return answered(lambda: node.clients.result({"id": task_id, **query}, OWNER)())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (7, 7),
        (-5, -5),
        (-(2**31), -(2**31)),
        (2**31 - 1, 2**31 - 1),
        (2**31, -(2**31)),
        (2**32 - 2, -2),
    ],
)
@pytest.mark.parametrize("kind", ["json", "form"])
def test_a_seed_is_kept_and_a_high_one_wraps(
    node: MockNode, alice: GatewayWorker, given: int, kept: int, kind: str
) -> None:
    if kind == "json":
        reply = add_json(node, prompt="a red car", seed=given)
    else:
        reply = add_form(node, prompt=b"a red car", seed=str(given).encode())
    assert reply.status == 200, reply.body
    assert alice.take()[0]["seed"] == kept


@pytest.mark.parametrize("given", [None, -1, 4294967295])
def test_a_seed_that_asks_for_chance_becomes_any_but_minus_one(
    node: MockNode, alice: GatewayWorker, given: int | None
) -> None:
    for _ in range(20):
        add_json(node, prompt="a red car", **({} if given is None else {"seed": given}))
    seeds = [task["seed"] for task in alice.take(20)]
    assert len(set(seeds)) == 20
    assert -1 not in seeds
    assert min(seeds) < 0 < max(seeds)
    assert all(-(2**31) <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_the_ends_of_chance_are_no_minus_one(node: MockNode, chance: float) -> None:
    assert replace(node.clients, chance=lambda: chance).seed(None) != -1


@pytest.mark.parametrize("seed", [2**32, -(2**31) - 1, 1.5, "7", True])
def test_a_seed_out_of_range_or_of_another_type_is_400(node: MockNode, seed: Any) -> None:
    assert add_json(node, prompt="a red car", seed=seed).status == 400


@pytest.mark.parametrize("seed", [b"4294967296", b"x", b"1_0", b"", b"000000000001"])
def test_a_seed_of_a_form_that_is_no_number_of_32_bits_is_400(node: MockNode, seed: bytes) -> None:
    assert add_form(node, prompt=b"a red car", seed=seed).status == 400


def test_prompt_and_picture_together_or_neither_is_400(node: MockNode) -> None:
    both = add_form(node, prompt=b"a red car", image=picture())
    assert both.status == 400
    assert both.body == b"Bad request: Cannot provide both prompt and image. Choose one."
    for neither in (add_form(node, seed=b"7"), add_json(node), add_json(node, prompt="")):
        assert neither.status == 400
        assert neither.body == b"Bad request: Must provide either prompt or image"


@pytest.mark.parametrize(
    ("prompt", "status"),
    [
        ("ab", 400),
        ("abc", 200),
        ("a" * 384, 200),
        ("a <b>", 400),
        ("ein Stück", 400),
        ("a\nb", 400),
    ],
)
def test_a_prompt_has_three_characters_or_more_of_those_that_are_taken(
    node: MockNode, prompt: str, status: int
) -> None:
    assert add_json(node, prompt=prompt).status == status
    assert add_form(node, prompt=prompt.encode()).status == status


def test_the_longest_prompt_is_enforced_for_forms_only(
    node: MockNode, alice: GatewayWorker
) -> None:
    assert add_form(node, prompt=b"a" * 385).status == 400
    assert add_json(node, prompt="a" * 4000).status == 200
    assert len(alice.take()[0]["prompt"]) == 4000


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_picture_of_1024_pixels_is_taken_and_a_larger_one_is_not(
    node: MockNode, form: str
) -> None:
    assert add_form(node, image=picture(1024, 1024, form)).status == 200
    assert b"too wide: 1025px" in add_form(node, image=picture(1025, 8, form)).body
    assert b"too tall: 1025px" in add_form(node, image=picture(8, 1025, form)).body


def test_what_is_no_picture_that_is_taken_is_400(node: MockNode) -> None:
    for data in (b"x" * 100, picture(8, 8, "GIF"), picture()[:20]):
        assert add_form(node, image=data).status == 400
    too_large = picture() + bytes(2_097_152)
    assert add_form(node, image=too_large).status == 400


def test_unknown_models_and_text_for_a_mesh_are_400_with_the_field(node: MockNode) -> None:
    unknown = value(add_json(node, prompt="a red car", model="x"))
    assert (unknown["error"], unknown["field"]) == ("invalid_field", "model")
    mesh = value(add_json(node, prompt="a red car", model="404-mesh"))
    assert mesh["message"] == "Model '404-mesh' does not support text input"
    assert add_form(node, image=picture(), model=b"404-mesh-v2").status == 200


@pytest.mark.parametrize("params", [None, [], "x", {"a": "b" * 1017}])
def test_parameters_that_are_no_object_or_too_long_are_400(node: MockNode, params: Any) -> None:
    assert add_json(node, prompt="a red car", model_params=params).status == 400


def test_parameters_of_1024_bytes_are_taken(node: MockNode, alice: GatewayWorker) -> None:
    params = {"a": "b" * 1016}
    assert add_json(node, prompt="a red car", model_params=params).status == 200
    assert alice.take()[0]["model_params"] == params


def test_unknown_fields_of_a_form_are_400(node: MockNode) -> None:
    reply = add_form(node, prompt=b"a red car", priority=b"1")
    assert reply.status == 400
    assert b"unknown field received: priority" in reply.body


def test_a_full_queue_is_503(clock: Clock) -> None:
    node = cluster(clock, queue_limit=1).nodes[0]
    assert add_json(node, prompt="a red car").status == 200
    full = add_json(node, prompt="a red car")
    assert (full.status, full.body) == (503, b"Service unavailable: Task queue is full")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("daily_limit", 429),
        ("insufficient_balance", 402),
        ("login_required", 401),
        ("pricing_unavailable", 503),
    ],
)
def test_what_billing_refuses_has_its_status_and_code(
    node: MockNode, code: str, status: int
) -> None:
    body = b'{"prompt": "a red car"}'
    reply = answered(node.clients.add_json, body, KeyOwner("poor", refusal=code))
    assert (reply.status, value(reply)["error"]) == (status, code)


def test_a_guest_has_a_limit_of_tasks_at_once(node: MockNode, alice: GatewayWorker) -> None:
    guest, body = KeyOwner("guest", most_at_once=2), b'{"prompt": "a red car"}'
    for _ in range(2):
        assert answered(node.clients.add_json, body, guest).status == 200
    refused = answered(node.clients.add_json, body, guest)
    assert (refused.status, value(refused)["error"]) == (429, "concurrent_limit")
    alice.add_result(alice.take()[0])
    assert answered(node.clients.add_json, body, guest).status == 200


def refused(keys: ApiKeys, key: str | None, address: str = "1.2.3.4") -> tuple[int, bytes]:
    with pytest.raises(GatewayRefusal) as raised:
        keys.owner(key, address)
    return raised.value.reply.status, raised.value.reply.body


def test_a_missing_key_is_401_a_malformed_one_400_and_an_unknown_one_401(clock: Clock) -> None:
    keys = ApiKeys(GatewayRules(keys={KEY: OWNER}), clock)
    assert keys.owner(KEY, "1.2.3.4") == OWNER
    assert keys.owner(KEY.upper(), "1.2.3.4") == OWNER
    assert refused(keys, None) == (401, b"Unauthorized request: Missing API key")
    for malformed in ("", "x", KEY.replace("-", ""), f"{KEY} ", f"{{{KEY}}}"):
        assert refused(keys, malformed) == (400, b"Bad request: Invalid API key format")
    assert refused(keys, OTHER_KEY) == (401, b"Unauthorized request: Invalid API key")


def test_fifty_unknown_keys_within_ten_minutes_close_an_address_for_five(clock: Clock) -> None:
    keys = ApiKeys(GatewayRules(keys={KEY: OWNER}), clock)
    for _ in range(50):
        assert refused(keys, OTHER_KEY)[0] == 401
        clock.now += 11.0
    status, body = refused(keys, OTHER_KEY)
    assert (status, json.loads(body)["error"]) == (429, "invalid_api_key_rate_limit")
    assert refused(keys, OTHER_KEY, "5.6.7.8")[0] == 401
    assert keys.owner(KEY, "1.2.3.4") == OWNER
    clock.now += 300.0
    assert refused(keys, OTHER_KEY)[0] == 401


def test_without_configured_keys_each_is_its_own_owner(clock: Clock) -> None:
    keys = ApiKeys(GatewayRules(), clock)
    assert keys.owner(KEY, "").name != keys.owner(OTHER_KEY, "").name


@pytest.mark.parametrize(
    ("header", "counted"), [("Blender", "blender"), (None, "unknown"), ("my-site", "unknown")]
)
def test_only_known_origins_are_counted_by_name(header: str | None, counted: str) -> None:
    assert origin(header) == counted


@pytest.fixture
def delivered(clock: Clock) -> tuple[MockNode, str]:
    """A task of three copies: one failure, then two successes."""
    node = cluster(clock, copies=3).nodes[0]
    task_id = submit(node)
    for name, changes in (
        ("5Alice", {"status": "failure"}),
        ("5Bob", {"asset": ball_spz()}),
        ("5Carol", {"asset": b"second"}),
    ):
        worker = GatewayWorker(node, clock, name, name)
        clock.now += 1.0
        worker.add_result(worker.take()[0], **changes)
    return node, task_id


def test_the_first_success_is_fetched_byte_by_byte(delivered: tuple[MockNode, str]) -> None:
    node, task_id = delivered
    reply = result(node, task_id)
    assert (reply.status, reply.body) == (200, ball_spz())
    assert reply.content_type == "application/octet-stream"
    assert reply.headers["Content-Disposition"] == 'attachment; filename="result.spz"'
    for query in ({"compress": "1"}, {"format": "spz"}, {"format": "SPZ", "compress": "0"}):
        assert result(node, task_id, **query).body == ball_spz()


def test_ply_is_made_of_the_spz_without_normals(delivered: tuple[MockNode, str]) -> None:
    node, task_id = delivered
    for query in ({"compress": "0"}, {"compress": " False "}, {"format": "ply"}):
        reply = result(node, task_id, **query)
        assert len(ply.decode(reply.body)) == len(ball())
        assert b"property float nx" not in reply.body
        assert reply.headers["Content-Disposition"] == 'attachment; filename="result.ply"'


def test_all_successes_are_a_zip_of_stored_files_in_the_order_of_their_arrival(
    delivered: tuple[MockNode, str],
) -> None:
    node, task_id = delivered
    reply = result(node, task_id, all="1")
    assert reply.content_type == "application/zip"
    with zipfile.ZipFile(io.BytesIO(reply.body)) as archive:
        assert archive.namelist() == ["1.spz", "2.spz"]
        assert archive.read("1.spz") == ball_spz()
        assert archive.read("2.spz") == b"second"
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.mark.parametrize("name", ["compress", "all"])
def test_a_boolean_of_another_form_is_400(delivered: tuple[MockNode, str], name: str) -> None:
    node, task_id = delivered
    for word in ("2", "", "maybe", "j"):
        assert result(node, task_id, **{name: word}).status == 400
    for word in ("1", "0", "true", "FALSE", "yes", "no", "on", "off"):
        assert result(node, task_id, **{name: word}).status == 200


def test_an_asset_that_is_no_spz_is_500_as_ply_and_handed_out_otherwise(
    node: MockNode, alice: GatewayWorker
) -> None:
    task_id = submit(node)
    alice.add_result(alice.take()[0], asset=ply.encode(ball()))
    assert result(node, task_id).body == ply.encode(ball())
    reply = result(node, task_id, compress="0")
    assert (reply.status, reply.body) == (500, b"Internal Server Error")


def test_nothing_is_fetched_before_a_result_nor_by_another_owner(
    node: MockNode, alice: GatewayWorker
) -> None:
    task_id = submit(node)
    pending = f"Task ID {task_id} not found".encode()
    assert (result(node, task_id).status, result(node, task_id).body) == (404, pending)
    alice.add_result(alice.take()[0])
    assert result(node, task_id).status == 200
    others = answered(node.clients.result, {"id": task_id}, KeyOwner("other"))
    assert (others.status, others.body) == (404, pending)


def test_if_all_have_failed_404_says_why(node: MockNode, alice: GatewayWorker) -> None:
    task_id = submit(node)
    alice.add_result(alice.take()[0], status="failure", reason="no object")
    reply = result(node, task_id)
    assert reply.status == 404
    assert reply.body == (
        f"No successful results found for task ID {task_id}. Failure reason: no object".encode()
    )


def test_while_others_are_at_work_the_first_success_can_be_fetched(clock: Clock) -> None:
    node = cluster(clock, copies=3).nodes[0]
    task_id = submit(node)
    GatewayWorker(node, clock, BOB).take()
    alice = GatewayWorker(node, clock)
    alice.add_result(alice.take()[0])
    assert value(node.clients.status({"id": task_id}))["status"] == "PartialResult(1)"
    assert result(node, task_id).status == 200


@pytest.mark.parametrize("query", [{}, {"id": ""}, {"id": "7"}])
def test_a_missing_or_a_bad_id_is_400(node: MockNode, query: dict[str, str]) -> None:
    assert answered(node.clients.status, query).status == 400
    assert answered(node.clients.result, query, OWNER).status == 400


def test_the_metrics_count_per_worker_from_the_submission(
    node: MockNode, alice: GatewayWorker, clock: Clock
) -> None:
    for _ in range(3):
        submit(node)
    clock.now += 10.0
    tasks = alice.take(3)
    alice.add_result(tasks[0])
    alice.add_result(tasks[1], status="failure")
    clock.now += 620.0
    lines = node.metrics().body.decode().splitlines()
    for line in (
        'tasks_received_total{worker="5Alice"} 3.0',
        'tasks_completed_total{worker="5Alice"} 1.0',
        'tasks_failed_total{worker="5Alice"} 1.0',
        'timeout_failures_total{worker="5Alice"} 1.0',
        'completion_time_max_seconds{worker="5Alice"} 10.0',
        "task_queue_length 0.0",
    ):
        assert line in lines
