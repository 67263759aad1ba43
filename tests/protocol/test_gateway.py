"""The gateway's wire: what is signed, what a worker sends, and what it accepts from a server."""

import base64
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import gateway
from protocol.errors import TaskError
from protocol.gateway import (
    MAX_NODES,
    MAX_REQUESTED_TASKS,
    SPLATS,
    AddResult,
    GatewayTask,
    GetTasks,
    check_tags,
    cut_reason,
    read_tasks,
    timestamp_at,
)
from protocol.tasks import ImageTask, TextTask
from tests.support.fakes import picture

REQUEST = {
    "worker_hotkey": "5W",
    "signature": "c2ln",
    "timestamp": "404_GATEWAY_1782345678",
    "worker_id": "splat-miner",
    "requested_task_count": 2,
    "model": SPLATS,
}


def test_numbers_and_words_are_the_published_ones() -> None:
    """The mock takes its numbers from there too, so that no trial of it would show a wrong one."""
    assert (gateway.FRESH_S, gateway.TASK_LIFE_S) == (30, 600.0)
    assert (gateway.QUEUE_LIFE_S, gateway.RESULT_LIFE_S) == (1800.0, 300.0)
    assert (MAX_REQUESTED_TASKS, gateway.MAX_REASON_BYTES) == (500, 255)
    assert gateway.MAX_ADD_RESULT_BYTES == 104_857_600
    assert gateway.ADD_RESULTS_PER_MINUTE == 120
    assert (gateway.ADD_TASKS_PER_MINUTE, gateway.STATUSES_PER_MINUTE) == (30, 1000)
    assert gateway.TASK_LIMITS.image.bytes == 2_097_152
    assert gateway.INVALID_AUTHENTICATION == "Invalid worker authentication"
    assert gateway.NOT_WHITELISTED == "Worker hotkey is not whitelisted"
    assert gateway.NOT_ASSIGNED == "Worker hotkey is not assigned to task"
    assert gateway.BEING_PROCESSED == "Result is already being processed; please retry"


def test_a_timestamp_has_whole_seconds_behind_the_prefix() -> None:
    assert timestamp_at(1782345678.9) == "404_GATEWAY_1782345678"


def test_get_tasks_is_the_recorded_json() -> None:
    """Names, order and types as the sheet has them; `worker_tags` only where there are some."""
    plain = (
        b'{"worker_hotkey":"5W","signature":"c2ln","timestamp":"404_GATEWAY_1782345678",'
        b'"worker_id":"splat-miner","requested_task_count":2,"model":"404-3dgs"}'
    )
    assert GetTasks.model_validate(REQUEST).body() == plain
    tagged = GetTasks.model_validate({**REQUEST, "worker_tags": ["a", "b"]})
    assert tagged.body() == plain[:-1] + b',"worker_tags":["a","b"]}'


def test_tags_are_lower_case_and_bad_ones_are_refused() -> None:
    assert check_tags([" Big-GPU ", "big-gpu", "a_1"]) == ("big-gpu", "a_1")
    for tag in ("", "bad tag", "x" * 33):
        with pytest.raises(ValueError, match="1-32 characters"):
            check_tags(["good", tag])


@pytest.mark.parametrize(
    ("wire", "seed"), [(None, None), (7, 7), (-5, 2**32 - 5), (-(2**31), 2**31), (-1, None)]
)
def test_a_negative_seed_is_the_same_32_bits_without_a_sign(
    wire: int | None, seed: int | None
) -> None:
    assert GatewayTask(id="t", prompt="a red car", seed=wire).task().seed == seed


def test_a_text_and_a_picture_become_tasks() -> None:
    text = GatewayTask(id="t", prompt="a red car").task()
    assert isinstance(text, TextTask)
    assert (text.id, text.prompt) == ("t", "a red car")
    shown = GatewayTask(id="i", image=base64.b64encode(picture()).decode()).task()
    assert isinstance(shown, ImageTask)
    assert shown.image == picture()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": "a car", "model": "404-mesh"}, "makes 404-3dgs, not '404-mesh'"),
        ({}, "either a prompt or an image"),
        ({"prompt": "a car", "image": "AAAA"}, "either a prompt or an image"),
        ({"prompt": "a car", "seed": 2**32}, "32 bits"),
        ({"prompt": "x" * 1025}, "1025 characters, the limit is 1024"),
        ({"prompt": " "}, "empty"),
        ({"image": "!!!!"}, "not base64"),
        ({"image": base64.b64encode(b"GIF89a").decode()}, "neither PNG, JPEG nor WebP"),
        ({"image": "A" * 3_000_000}, "the limit is"),
    ],
)
def test_a_task_that_cannot_be_made_says_why(fields: dict[str, object], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        GatewayTask.model_validate({"id": "t", **fields}).task()


def test_a_picture_of_more_than_1024_pixels_a_side_is_refused() -> None:
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (1025).to_bytes(4) + (8).to_bytes(4)
    task = GatewayTask(id="t", image=base64.b64encode(header + b"\x08\x02" + bytes(50)).decode())
    with pytest.raises(TaskError, match="1025 x 8 pixels"):
        task.task()


def answer(**fields: object) -> bytes:
    return json.dumps({"tasks": [], "gateways": [], **fields}).encode()


def test_an_answer_is_read_with_its_nodes() -> None:
    node = {
        "node_id": 1, "domain": "eu.example", "ip": "1.2.3.4", "name": "eu", "http_port": 4443,
        "available_tasks": 5, "last_task_acquisition": 1, "last_update": 2, "later": True,
    }  # fmt: skip
    task = {
        "id": "t", "prompt": "a red car", "model": SPLATS, "seed": -3,
        "model_params": {"a": [1]}, "assignment_token": "token", "later": True,
    }  # fmt: skip
    found = read_tasks(answer(tasks=[task], gateways=[node]))
    (read,), (listed,) = found.tasks, found.gateways
    assert (read.id, read.kind, read.seed, read.assignment_token) == ("t", "text", -3, "token")
    assert (listed.domain, listed.http_port, listed.available_tasks) == ("eu.example", 4443, 5)
    assert "red car" not in repr(read)


def test_one_bad_entry_does_not_affect_the_others() -> None:
    bad = {"id": "bad", "assignment_token": "token", "prompt": 7, "_fault": "x"}
    good = {"id": "good", "prompt": "a red car", "_fault": "x"}
    nodes = [{"domain": "x"}, 7, {"domain": "y", "http_port": 70000}]
    found = read_tasks(answer(tasks=[good, bad, {"id": ""}, {"prompt": "x"}, 7], gateways=nodes))
    assert found.gateways == ()
    assert [task.id for task in found.tasks] == ["good", "bad"]
    found.tasks[0].task()
    assert found.tasks[1].assignment_token == "token"
    with pytest.raises(TaskError, match="its prompt cannot be read"):
        found.tasks[1].task()


@pytest.mark.parametrize("token", [7, "", "t" * 65])
def test_a_task_whose_token_cannot_be_read_can_be_reported(token: object) -> None:
    task = {"id": "t", "prompt": "a red car", "assignment_token": token}
    (read,) = read_tasks(answer(tasks=[task])).tasks
    assert (read.id, read.assignment_token) == ("t", None)
    with pytest.raises(TaskError, match="its assignment_token cannot be read"):
        read.task()


def test_lists_without_end_are_cut() -> None:
    tasks = [{"id": f"t{n}", "prompt": "a car"} for n in range(MAX_REQUESTED_TASKS + 5)]
    nodes = [{"domain": "x", "http_port": 443}] * (MAX_NODES + 5)
    found = read_tasks(answer(tasks=tasks, gateways=nodes))
    assert (len(found.tasks), len(found.gateways)) == (MAX_REQUESTED_TASKS, MAX_NODES)


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"{}", b'{"tasks": {}}', b'{"tasks": null}', b"\xff", b"[" * 9999,
             b'{"tasks": [NaN]}'],
)  # fmt: skip
def test_what_is_no_answer_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="the answer"):
        read_tasks(body)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["tasks", "id", "prompt", "gateways", "seed", "model_params"]), inner),
    max_leaves=20,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_bytes_are_an_answer_or_a_value_error(body: bytes) -> None:
    try:
        tasks = read_tasks(body).tasks
    except ValueError:
        return
    for task in tasks:
        try:
            task.task()
        except TaskError:
            continue


def test_the_parts_of_a_result_have_one_order_and_the_asset_is_none_of_them() -> None:
    form = AddResult("t", "c2ln", "404_GATEWAY_1", "5W", "w", "token", asset=b"spz")
    common = [
        ("id", "t"), ("signature", "c2ln"), ("timestamp", "404_GATEWAY_1"),
        ("worker_hotkey", "5W"), ("worker_id", "w"), ("assignment_token", "token"),
    ]  # fmt: skip
    assert list(form.fields()) == [*common, ("status", "success")]
    failed = AddResult("t", "c2ln", "404_GATEWAY_1", "5W", "w", "token", reason="late")
    assert list(failed.fields()) == [*common, ("status", "failure"), ("reason", "late")]
    assert "c2ln" not in repr(form)
    assert "token" not in repr(form)


@given(st.text(max_size=400) | st.text("a,é ", min_size=200, max_size=400))
def test_a_reason_has_at_most_255_bytes_and_ends_with_a_whole_word(reason: str) -> None:
    cut, sent = cut_reason(reason), reason.encode("utf-8", "replace").decode()
    assert len(cut.encode()) <= 255
    if len(sent.encode()) <= 255:
        assert cut == sent
        return
    start = cut.removesuffix("…")
    assert cut == f"{start}…"
    assert sent.startswith(start)
    behind = sent[len(start)]
    is_one_word = re.fullmatch(r"[\s,;:]*\S*", start) is not None
    assert behind.isspace() or behind in ",;:" or is_one_word


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("late " * 50 + "again, and", "late " * 49 + "late…"),
        ("late " * 50 + "ab cd", "late " * 50 + "ab cd"),
        ("late " * 50 + "ab cde", "late " * 50 + "ab…"),
        ("late " * 50 + "abc de", "late " * 49 + "late…"),
        ("x" * 256, "x" * 252 + "…"),
        ("é" * 128, "é" * 126 + "…"),
    ],
)
def test_a_long_reason_is_cut_at_a_word_with_an_ellipsis(reason: str, sent: str) -> None:
    assert cut_reason(reason) == sent
