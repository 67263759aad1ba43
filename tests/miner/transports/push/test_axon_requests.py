"""What is asked: bodies, tasks, budgets, endings. The real Axon and Dendrite over loopback."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from PIL import Image

from miner.transports.push.axon import AxonTransport
from miner.transports.push.checks import NANOSECONDS, Admission
from protocol.errors import SetupError
from protocol.synapses import GenerateAsset
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine, ball_spz
from tests.support.running import (
    OTHER,
    STRANGER,
    VALIDATOR,
    MinerWallet,
    Running,
    Start,
)
from tests.support.waiting import until

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

SECOND = NANOSECONDS


async def test_there_is_no_other_route(miner: Running) -> None:
    for path in ("/Synapse", "/", "/Unknown", "/docs", "/openapi.json", "/%1b[2J"):
        headers, body = miner.signed()
        assert (await miner.post(headers, body, path))[0] == 404, path
    assert miner.transport.axon.nonces == {}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_body_beyond_the_limit_gets_413(miner: Running, streamed: bool) -> None:
    headers, _ = miner.signed()
    whole = b"x" * 9_000_000

    async def stream() -> AsyncIterator[bytes]:
        for start in range(0, len(whole), 1_000_000):
            yield whole[start : start + 1_000_000]

    try:
        status, reply = await miner.post(headers, stream() if streamed else BytesIO(whole))
    except aiohttp.ClientConnectionError:
        pass  # The server may close before a client that only writes has looked at its answer.
    else:
        assert status == 413
        assert "8454144 bytes" in reply["message"]
    assert miner.events("refused")[0]["reason_code"] == "body_too_large"
    assert (await miner.ask()).outcome == "completed"


async def test_a_field_of_the_wrong_type_gets_400_naming_it(miner: Running) -> None:
    for name, value in (("prompt", 7), ("prompt", ["a"]), ("seed", "many"), ("timings", 1)):
        headers, body = miner.signed()
        status, reply = await miner.post(headers, {**body, name: value})
        assert status == 400, name
        assert name in reply["message"]


async def test_a_body_that_is_no_request_is_refused(miner: Running) -> None:
    for body in ("", "{", "[]", "null", "7", '"x"', b"\xff\xfe", '{"prompt": "\\ud800"}'):
        headers, _ = miner.signed()
        status, reply = await miner.post(headers, body)
        assert status == 400, body
        assert "the body cannot be used" in reply["message"]
    assert miner.engine.ran == []
    assert (await miner.ask()).outcome == "completed"


async def test_an_unusable_task_is_answered_as_rejected(miner: Running) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "a\x00b"}, "control character"),
        ({"prompt": "x" * 100_000}, "100000 characters, the limit is 1024"),
        ({"task_type": "video"}, "'text' or 'image'"),
        ({"task_type": "image", "prompt": "???"}, "not base64"),
        ({"budget_s": -1.0}, "budget_s and timeout must be positive"),
        ({"budget_s": float("nan")}, "budget_s and timeout must be positive"),
        ({"seed": 2**40}, "seed"),
        ({"task_id": "x" * 1000}, "id"),
    ]
    for fields, words in cases:
        reply = await miner.ask(**fields)
        assert (reply.dendrite.status_code, reply.outcome) == (200, "rejected"), fields
        assert words in reply.reason
    assert {line["reason_code"] for line in miner.events("answered")} == {"bad_task"}
    assert miner.engine.ran == []


async def test_a_seed_of_minus_one_is_as_good_as_none(miner: Running) -> None:
    for seed in (-1, None):
        reply = await miner.ask(seed=seed)
        assert (reply.outcome, reply.seed) == ("completed", seed)


async def test_an_image_comes_back_emptied(miner: Running) -> None:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    reply = await miner.ask(task_type="image", prompt=image)
    assert (reply.outcome, reply.prompt) == ("completed", "")
    assert "denoise" not in reply.timings
    assert image[:40] not in miner.log.path.read_text()


async def test_the_signed_budget_and_the_timeout_both_shorten_the_time(miner: Running) -> None:
    by_budget = await miner.ask(budget_s=3.0)
    assert (by_budget.outcome, by_budget.reason_code) == ("dropped", "predicted_late")
    by_timeout = await miner.ask(timeout=4.0)
    assert (by_timeout.outcome, by_timeout.reason_code) == ("dropped", "predicted_late")
    budgets = [line["budget_s"] for line in miner.events("answered")]
    # Less a second of margin, and the delivery.
    assert 1.5 < budgets[0] < 2.0
    assert 2.5 < budgets[1] < 3.0
    assert (await miner.ask(budget_s=1000.0, timeout=1000.0)).outcome == "completed"


async def test_without_a_budget_everything_is_dropped_at_once(start: Start) -> None:
    async with start(budget_s=0.01) as miner:
        await miner.ask()  # Opens the connection.
        elapsed = []
        for _ in range(5):
            before = time.monotonic()
            reply = await miner.ask()
            elapsed.append(time.monotonic() - before)
            assert (reply.dendrite.status_code, reply.outcome) == (200, "dropped")
            assert "delivery = " in reply.reason
            assert "of 0.0 s" in reply.reason
        assert min(elapsed) < 0.1  # A busy machine may disturb some of them.
        assert miner.engine.ran == []


async def test_too_many_requests_of_one_caller_get_429(start: Start) -> None:
    async with start(per_minute=2) as miner:
        assert [(await miner.ask()).dendrite.status_code for _ in range(3)] == [200, 200, 429]
        status, _ = await miner.post(*miner.signed(OTHER))
        assert status == 200
        assert miner.events("refused")[0]["reason_code"] == "rate_limited"


async def test_forged_requests_use_up_nobodys_quota(start: Start) -> None:
    async with start(per_minute=2) as miner:
        for _ in range(5):
            headers, body = miner.signed(STRANGER)
            headers["bt_header_dendrite_hotkey"] = VALIDATOR.ss58_address
            assert (await miner.post(headers, body))[0] == 401
        assert (await miner.ask()).dendrite.status_code == 200


async def test_requests_wait_beside_each_other(miner: Running) -> None:
    miner.engine.hold_at = "splats"
    asking: list[Awaitable[GenerateAsset]] = [
        asyncio.create_task(miner.ask(task_id=str(number))) for number in range(3)
    ]
    await until(lambda: len(miner.events("admitted")) == 3)
    refused, _ = await miner.post({}, {})
    assert refused == 403
    miner.engine.release.set()
    assert [reply.task_id for reply in await asyncio.gather(*asking)] == ["0", "1", "2"]


async def test_a_client_that_goes_away_is_given_up_and_harms_nobody(miner: Running) -> None:
    miner.engine.hold_at = "splats"
    headers, body = miner.signed()
    leaving = asyncio.create_task(miner.post(headers, body))
    await miner.engine.holding.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    await until(lambda: miner.events("answered"))
    (line,) = miner.events("answered")
    assert (line["outcome"], line["reason_code"]) == ("dropped", "caller_left")
    assert miner.service.active(except_transport="pull") == 0
    miner.engine.hold_at = None
    miner.engine.release.set()
    assert (await miner.ask()).outcome == "completed"
    assert [stage for _, stage in miner.engine.ran].count("encode") == 1


async def test_the_service_learns_how_long_the_delivery_took(miner: Running) -> None:
    learned: list[tuple[str, int, float]] = []
    miner.service.delivered = lambda *values: learned.append(values)  # type: ignore
    assert (await miner.ask()).outcome == "completed"
    await until(lambda: learned)
    ((transport, size, seconds),) = learned
    assert (transport, size) == ("axon", len(ball_spz()))
    assert 0.0 < seconds < 5.0


async def test_an_answer_under_way_is_delivered_before_the_axon_closes(start: Start) -> None:
    async with start() as miner:
        miner.engine.hold_at = "splats"
        asking = asyncio.create_task(miner.ask())
        await miner.engine.holding.wait()
        draining = asyncio.create_task(miner.service.drain())
        await asyncio.sleep(0)
        late = await miner.ask()
        assert (late.outcome, late.reason_code) == ("dropped", "draining")
        miner.engine.release.set()
        await draining
        await miner.transport.close()
        assert (await asking).outcome == "completed"


async def test_bittensor_reads_neither_our_command_line_nor_our_files(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BT_NO_PARSE_CLI_ARGS", "false")
    monkeypatch.setattr("sys.argv", ["miner", "--config", "absent.yaml", "--axon.port", "1"])
    async with start() as miner:
        assert (await miner.ask()).outcome == "completed"


async def test_a_taken_port_is_a_start_up_message(miner: Running, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be used: Address already in use") as caught:
        AxonTransport(
            miner.service,
            StaticChain(),
            miner.log,
            wallet=MinerWallet(),
            admission=Admission(),
            ip="127.0.0.1",
            port=miner.target.port,
            external_ip="127.0.0.1",
        )
    assert "--axon.port" in caught.value.fix


@pytest.mark.parametrize("send", [True, False])
async def test_what_the_gate_is_against_is_sent_unless_a_setting_forbids_it(
    start: Start, send: bool
) -> None:
    async with start(engine=FakeEngine(worth=lambda task: 0.4), send_gated=send) as miner:
        reply = await miner.ask()
        (line,) = miner.events("answered")
    assert (reply.dendrite.status_code, reply.outcome) == (200, "completed")
    assert reply.reason_code == line["reason_code"] == "below_threshold"
    assert reply.reason.startswith("its score 0.400 is below 0.600: threshold 0.6")
    if send:
        assert base64.b64decode(reply.results) == ball_spz()
        assert (reply.gaussians, reply.axon.status_message) == (8000, "Success")
    else:
        assert (reply.results, reply.gaussians, reply.size_bytes) == ("", 0, 0)
        assert reply.axon.status_message == f"below_threshold: {reply.reason}"
