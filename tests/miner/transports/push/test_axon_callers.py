"""Who asks: identity, registration, replay, quota. The real Axon and Dendrite over loopback."""

import base64
import json
import time

import pytest

from miner.transports.pull.dendrite import offline_dendrite
from miner.transports.push.checks import MAX_AGE_S, MAX_AHEAD_S, NANOSECONDS
from protocol import spz
from tests.support.fakes import ball, ball_spz
from tests.support.running import OTHER, STRANGER, VALIDATOR, Running, seconds_by_stage

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

SECOND = NANOSECONDS


async def test_a_plain_dendrite_gets_an_asset(miner: Running) -> None:
    reply = await miner.ask(seed=7, budget_s=20.0)
    assert reply.dendrite.status_code == 200
    assert (reply.outcome, reply.reason_code, reply.task_id) == ("completed", "ok", "t")
    asset = base64.b64decode(reply.results)
    assert asset == ball_spz()
    assert len(spz.decode(asset)) == reply.gaussians == len(ball())
    assert reply.size_bytes == len(asset)
    assert reply.timings == pytest.approx(seconds_by_stage(miner.engine))
    assert (reply.prompt, reply.seed, reply.miner_version) == ("a blue cube", 7, "1.2.3")
    (line,) = miner.events("answered")
    assert line["caller"] == VALIDATOR.ss58_address
    assert (line["uid"], line["transport"]) == (1, "axon")
    assert 18.0 < line["budget_s"] < 19.0  # Less the margin and the delivery.


async def test_an_unregistered_hotkey_gets_403_with_the_reason(miner: Running) -> None:
    async with offline_dendrite(STRANGER) as dendrite:
        miner.dendrite = dendrite
        reply = await miner.ask()
    assert reply.dendrite.status_code == 403
    assert "the hotkey is not registered on this subnet" in reply.dendrite.status_message
    assert miner.engine.ran == []
    assert miner.events("answered") == []
    assert miner.events("refused")[0]["reason_code"] == "unknown_hotkey"


async def test_a_caller_is_who_it_signed_as_whatever_its_body_says(miner: Running) -> None:
    headers, body = miner.signed(OTHER)
    body["dendrite"] = {**body["dendrite"], "hotkey": VALIDATOR.ss58_address}
    status, reply = await miner.post(headers, body)
    assert (status, reply["outcome"]) == (200, "completed")
    assert reply["dendrite"]["hotkey"] == OTHER.ss58_address
    assert miner.events("answered")[0]["caller"] == OTHER.ss58_address


async def test_what_else_the_caller_wrote_is_not_echoed(miner: Running) -> None:
    headers, body = miner.signed()
    body["axon"]["status_message"] = "evil\r\nheader: 1"
    body["dendrite"]["uuid"] = "evil\r\nheader: 2"
    body["reason"] = "evil"
    status, reply = await miner.post(headers, body)
    assert status == 200
    assert "evil" not in json.dumps(reply)


async def test_a_claimed_identity_without_its_key_is_refused(miner: Running) -> None:
    headers, body = miner.signed(STRANGER)
    headers["bt_header_dendrite_hotkey"] = VALIDATOR.ss58_address
    assert (await miner.post(headers, body))[0] == 401
    assert miner.engine.ran == []


async def test_a_body_changed_on_the_way_is_refused(miner: Running) -> None:
    for name in ("task_type", "task_id", "prompt", "seed", "budget_s"):
        headers, body = miner.signed(seed=1, budget_s=10.0)
        body[name] = {"seed": 2, "budget_s": 11.0}.get(name, "changed")
        status, reply = await miner.post(headers, body)
        assert status == 400, name
        assert "Hash mismatch" in reply["message"]
    assert miner.engine.ran == []


async def test_the_same_message_is_taken_once(miner: Running) -> None:
    headers, body = miner.signed()
    assert (await miner.post(headers, body))[0] == 200
    status, reply = await miner.post(headers, body)
    assert status == 401
    assert "received before" in reply["message"]
    assert len(miner.events("answered")) == 1
    assert miner.transport.axon.nonces == {}


async def test_requests_that_overtake_each_other_are_both_taken(miner: Running) -> None:
    first, second = miner.signed(), miner.signed()
    assert (await miner.post(*second))[0] == 200
    assert (await miner.post(*first))[0] == 200


async def test_a_message_outside_its_time_or_signature_is_refused(miner: Running) -> None:
    signature = "bt_header_dendrite_signature"
    cases: list[tuple[float, dict[str, str]]] = [
        (MAX_AGE_S + 1.0, {}),
        (MAX_AGE_S + 1.0, {"timeout": "1e18"}),
        (0.0, {"timeout": "nan"}),
        (0.0, {"timeout": "inf"}),
        (0.0, {"bt_header_dendrite_version": "7000000"}),
        (-MAX_AHEAD_S - 5.0, {}),
        (0.0, {signature: ""}),
        (0.0, {signature: "0x00"}),
        (0.0, {signature: "0xzz"}),
        (0.0, {signature: "0x" + "00" * 64}),
        (0.0, {signature: "é" * 10}),
        (0.0, {"bt_header_dendrite_nonce": "9" * 26}),
        (0.0, {"bt_header_dendrite_nonce": "-1"}),
        (0.0, {"bt_header_dendrite_uuid": "x"}),
        (0.0, {"computed_body_hash": "x"}),
    ]
    for age_s, changed in cases:
        headers, body = miner.signed(nonce=time.time_ns() - int(age_s * SECOND))
        status, _ = await miner.post({**headers, **changed}, body)
        assert status == 401, (age_s, changed)
    assert miner.engine.ran == []
    assert (await miner.ask()).outcome == "completed"


@pytest.mark.parametrize("header", ["nonce", "version"])
async def test_a_header_that_is_no_number_gets_400_naming_it(miner: Running, header: str) -> None:
    headers, body = miner.signed()
    status, reply = await miner.post({**headers, f"bt_header_dendrite_{header}": "x"}, body)
    assert status == 400
    assert f"bt_header_dendrite_{header} is 'x'" in reply["message"]
    assert (await miner.ask()).outcome == "completed"


async def test_a_message_from_before_the_start_is_refused_as_it_may_be_a_replay(
    miner: Running,
) -> None:
    status, reply = await miner.post(*miner.signed(nonce=time.time_ns() - 8 * SECOND))
    assert status == 401
    assert "before this miner started" in reply["message"]
