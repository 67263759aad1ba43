"""What the axon answers to what, as a table; docs/push-protocol.md lists the same."""

import asyncio
import base64
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from generation.errors import GenerationError
from miner.transports.push.checks import MAX_AGE_S, MAX_AHEAD_S, NANOSECONDS, Admission
from protocol.synapses import GenerateAsset
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.miner.transports.push.test_push_protocol_page import documented_codes
from tests.support.running import OTHER, STRANGER, VALIDATOR, Running, Start

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

NONCE, VERSION = "bt_header_dendrite_nonce", "bt_header_dendrite_version"
HOTKEY, UUID = "bt_header_dendrite_hotkey", "bt_header_dendrite_uuid"
SIGNATURE = "bt_header_dendrite_signature"

Change = Callable[[dict[str, str], dict[str, Any]], None]


async def exchange(
    miner: Running,
    headers: dict[str, str],
    body: bytes,
    *,
    method: str = "POST",
    path: str = "/GenerateAsset",
) -> tuple[int, dict[str, str], Any]:
    """Sends exactly these headers; returns status, headers and JSON of the answer."""
    lines = {"host": "x", "content-length": str(len(body)), "connection": "close", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", miner.target.port)
    writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body)
    answer = await asyncio.wait_for(reader.read(), 20.0)
    writer.close()
    start, _, content = answer.partition(b"\r\n\r\n")
    status, *rows = start.decode("latin-1").split("\r\n")
    found = dict(row.split(": ", 1) for row in rows)
    return int(status.split()[1]), found, json.loads(content) if content else None


def at(seconds: float) -> int:
    return time.time_ns() + int(seconds * NANOSECONDS)


def header(name: str, value: str | None) -> Change:
    def change(headers: dict[str, str], body: dict[str, Any]) -> None:
        headers.pop(name, None)
        if value is not None:
            headers[name] = value

    return change


def field(name: str, value: Any) -> Change:
    def change(headers: dict[str, str], body: dict[str, Any]) -> None:
        body[name] = value

    return change


CASES: list[tuple[int, str, str, Change]] = [
    (400, "bad_headers", f"{NONCE} is missing", header(NONCE, None)),
    (400, "bad_headers", f"{NONCE} is 'x'", header(NONCE, "x")),
    (400, "bad_headers", f"{NONCE} is '1_0'", header(NONCE, "1_0")),
    (400, "bad_headers", f"{NONCE} is '1.5'", header(NONCE, "1.5")),
    (400, "bad_headers", f"{NONCE} is not printable ASCII", header(NONCE, "\xb2")),
    (400, "bad_headers", f"{NONCE} has 300 characters", header(NONCE, "9" * 300)),
    (400, "bad_headers", f"{VERSION} is '10.5'", header(VERSION, "10.5")),
    (400, "bad_headers", f"{UUID} is not printable ASCII", header(UUID, "\xe9")),
    (400, "bad_headers", "timeout is 'None'", header("timeout", "None")),
    (400, "bad_headers", "timeout is '1_0'", header("timeout", "1_0")),
    (400, "bad_headers", "computed_body_hash is missing", header("computed_body_hash", None)),
    (400, "bad_body", "prompt: ", field("prompt", ["a"])),
    (400, "bad_body", "dendrite.nonce: cannot be used", field("dendrite", {"nonce": "secret"})),
    (400, "bad_body", "wrong type or size", field("dendrite", {"nonce": float("inf")})),
    (400, "bad_body", "wrong type or size", field("dendrite", {"nonce": []})),
    (400, "bad_body", "surrogate", field("prompt", "\ud800")),
    (400, "hash_mismatch", "required_hash_fields", field("prompt", "another")),
    (401, "bad_version", "update bittensor", header(VERSION, "7001999")),
    (401, "bad_timeout", "not a positive number", header("timeout", "-1")),
    (401, "bad_timeout", "not a positive number", header("timeout", "nan")),
    (401, "bad_signature", "Missing Signature", header(SIGNATURE, None)),
    (401, "bad_signature", "this miner's hotkey", header(SIGNATURE, "0x" + "00" * 64)),
    (401, "bad_signature", "cannot be checked", header(SIGNATURE, "0xzz")),
    (401, "bad_signature", "this miner's hotkey", header(NONCE, "1")),
    (403, "unknown_hotkey", "not registered", header(HOTKEY, None)),
    (403, "unknown_hotkey", "not registered", header(HOTKEY, "\xff\xfe")),
    (415, "bad_content_type", "'text/plain'", header("content-type", "text/plain")),
    (415, "bad_content_type", "application/json", header("content-type", "\xff")),
    (415, "bad_content_type", "'gzip'", header("content-encoding", "gzip")),
]


@pytest.mark.parametrize(("status", "code", "words", "change"), CASES)
async def test_what_is_wrong_is_answered_4xx_with_the_reason(
    miner: Running, status: int, code: str, words: str, change: Change
) -> None:
    headers, body = miner.signed()
    headers["content-type"] = "application/json"
    change(headers, body)
    found, sent, reply = await exchange(miner, headers, json.dumps(body).encode())
    assert (found, reply["reason_code"]) == (status, code)
    assert words in reply["message"]
    assert "secret" not in reply["message"]
    # As dendrites of every version read it.
    assert sent["bt_header_axon_status_code"] == str(status)
    assert sent["bt_header_axon_status_message"] == reply["message"]
    assert (status, code) in documented_codes()
    (line,) = miner.events("refused")
    assert (line["reason_code"], line["count"]) == (code, 1)
    assert miner.engine.ran == []


BODIES: list[tuple[bytes, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "array"),
    (b"null", "not an object"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    (b"\xff\xfe", "not UTF-8 at byte 0"),
    ('{"prompt": "é"}'.encode("utf-16"), "not UTF-8"),
    (b'{"a":' * 100_000, "nested too deeply"),
    (b'{"seed": ' + b"9" * 10_000 + b"}", "wrong type or size"),
]


@pytest.mark.parametrize(("data", "words"), BODIES)
async def test_a_body_that_is_no_json_object_is_answered_400(
    miner: Running, data: bytes, words: str
) -> None:
    headers, _ = miner.signed()
    found, _, reply = await exchange(miner, headers, data)
    assert (found, reply["reason_code"]) == (400, "bad_body")
    assert words in reply["message"]


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/", "POST", 404, "not_found"),
        ("/Synapse", "POST", 404, "not_found"),
        ("/GenerateAsset/", "POST", 404, "not_found"),
        ("/openapi.json", "GET", 404, "not_found"),
        ("/%ff%00%1b", "POST", 404, "not_found"),
        ("/GenerateAsset", "GET", 405, "bad_method"),
        ("/GenerateAsset", "PUT", 405, "bad_method"),
        ("/GenerateAsset", "OPTIONS", 405, "bad_method"),
    ],
)
async def test_another_path_or_method(
    miner: Running, path: str, method: str, status: int, code: str
) -> None:
    found, sent, reply = await exchange(miner, {}, b"", path=path, method=method)
    assert (found, reply["reason_code"]) == (status, code)
    assert "POST /GenerateAsset" in reply["message"]
    assert (status, code) in documented_codes()
    assert sent.get("allow") == ("POST" if status == 405 else None)


async def test_a_header_that_is_there_twice_is_refused(miner: Running) -> None:
    headers, body = miner.signed(OTHER)
    twice = {**headers, HOTKEY.upper(): VALIDATOR.ss58_address}
    found, _, reply = await exchange(miner, twice, json.dumps(body).encode())
    assert (found, reply["reason_code"]) == (400, "bad_headers")
    assert f"{HOTKEY} is there twice" in reply["message"]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", None])
async def test_plain_json_is_taken_with_and_without_its_content_type(
    miner: Running, kind: str | None
) -> None:
    headers, body = miner.signed()
    if kind is not None:
        headers["content-type"] = kind
    found, _, reply = await exchange(miner, headers, json.dumps(body).encode())
    assert (found, reply["outcome"]) == (200, "completed")


async def test_times_outside_the_window_have_codes_of_their_own(miner: Running) -> None:
    for offset, code in (
        (MAX_AHEAD_S + 2.0, "clock_ahead"),
        (3600.0, "clock_ahead"),
        (-MAX_AGE_S - 2.0, "clock_behind"),
        (-3600.0, "clock_behind"),
        (-MAX_AGE_S + 4.0, "before_start"),
    ):
        headers, body = miner.signed(nonce=at(offset))
        status, reply = await miner.post(headers, body)
        assert (status, reply["reason_code"]) == (401, code), offset
        assert (401, code) in documented_codes()


async def test_every_reason_not_to_admit_a_hotkey_is_403(start: Start) -> None:
    for chain, admission, code in (
        (StaticChain(), Admission(), "unknown_hotkey"),
        (StaticChain(stale=True), Admission(), "chain_unavailable"),
        (None, Admission(min_stake=1e6), "low_stake"),
    ):
        async with start() as miner:
            entrance = miner.transport._entrance
            entrance._admission = admission
            if chain is not None:
                entrance._chain = chain
            status, reply = await miner.post(*miner.signed())
            assert (status, reply["reason_code"]) == (403, code)
            assert (403, code) in documented_codes()


async def test_a_rate_beyond_the_limit_is_429_and_says_when_to_ask_again(start: Start) -> None:
    async with start(per_minute=1) as miner:
        assert (await miner.post(*miner.signed()))[0] == 200
        headers, body = miner.signed()
        found, sent, reply = await exchange(miner, headers, json.dumps(body).encode())
        assert (found, reply["reason_code"]) == (429, "rate_limited")
        assert 50 <= int(sent["retry-after"]) <= 60
        assert (429, "rate_limited") in documented_codes()


async def test_a_task_has_the_outcomes_of_the_page(miner: Running) -> None:
    assert (await miner.ask()).outcome == "completed"
    assert (await miner.ask(budget_s=0.5)).outcome == "dropped"
    assert (await miner.ask(prompt="")).outcome == "rejected"
    miner.engine.error_at, miner.engine.error = "lift", GenerationError("a bad surface")
    assert (await miner.ask()).outcome == "failed"


async def test_an_old_replay_is_401(miner: Running) -> None:
    headers, body = miner.signed()
    assert (await miner.post(headers, body))[0] == 200
    status, reply = await miner.post(headers, body)
    assert (status, reply["reason_code"]) == (401, "replayed")


async def test_a_failure_of_the_miner_is_500_logged_once_and_counted(
    miner: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*arguments: Any) -> Any:
        raise KeyError("a bug")

    headers, body = miner.signed()
    with monkeypatch.context() as patch:
        patch.setattr(miner.service, "handle", broken)
        found, _, reply = await exchange(miner, headers, json.dumps(body).encode())
    assert found == 500
    assert reply["error_id"] in reply["message"]
    (line,) = miner.events("refused")
    assert (line["reason_code"], line["count"]) == ("server_error", 1)
    assert reply["error_id"] in line["reason"]
    assert (500, "server_error") in documented_codes()
    assert (await miner.ask()).outcome == "completed"


async def test_a_dendrite_sees_status_and_reason_of_a_refusal(miner: Running) -> None:
    headers, body = miner.signed(STRANGER)
    local = GenerateAsset(prompt="a blue cube")
    local = miner.dendrite.preprocess_synapse_for_request(miner.target, local, 12.0)
    found, sent, reply = await exchange(miner, headers, json.dumps(body).encode())

    class Response:
        status, headers = found, sent

    miner.dendrite.process_server_response(Response(), reply, local)
    assert local.dendrite.status_code == 403
    assert local.is_blacklist
    assert "not registered" in local.dendrite.status_message


async def test_an_answer_has_the_headers_that_a_dendrite_merges(miner: Running) -> None:
    headers, body = miner.signed()
    found, sent, reply = await exchange(miner, headers, json.dumps(body).encode())
    assert found == 200
    assert sent["name"] == "GenerateAsset"
    assert float(sent["timeout"]) == reply["timeout"] == 12.0
    assert sent["bt_header_axon_status_code"] == "200"
    assert sent["bt_header_dendrite_hotkey"] == VALIDATOR.ss58_address
    assert base64.b64decode(reply["results"])
