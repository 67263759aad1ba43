"""The real Axon and the real Dendrite over loopback, with real sr25519 keys."""

import asyncio
import base64
import json
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import bittensor as bt
import numpy as np
import pytest
from PIL import Image

from miner.score_log import ScoreLog
from miner.service import MinerService
from miner.subnet import Neuron
from miner.transports.axon import AxonTransport
from miner.transports.axon_checks import MAX_AGE_S, MAX_AHEAD_S, NANOSECONDS, Admission
from neurons.mock_validator import offline_dendrite
from protocol import spz
from protocol.errors import SetupError
from protocol.synapses import GenerateAsset
from tests.miner.fakes import PRIOR, FakeGenerator, ball, ball_spz
from tests.miner.transports.test_axon_checks import StaticChain

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

SECOND = NANOSECONDS


def new_key() -> Any:
    return bt.Keypair.create_from_mnemonic(bt.Keypair.generate_mnemonic())


MINER, VALIDATOR, OTHER, STRANGER = (new_key() for _ in range(4))


class MinerWallet:
    hotkey = MINER
    coldkeypub = MINER


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A miner on a fake generator, and a plain Dendrite to ask it with."""

    def __init__(self, folder: Path, dendrite: Any, **settings: Any) -> None:
        self.generator = FakeGenerator()
        self.log = ScoreLog(folder)
        self.dendrite = dendrite
        self.service = MinerService(
            self.generator,
            self.log,
            budget_s=settings.pop("budget_s", 30.0),
            margin_s=settings.pop("margin_s", 1.0),
        )
        neurons = [
            Neuron(uid=1, hotkey=VALIDATOR.ss58_address, stake=900.0, validator_permit=True),
            Neuron(uid=2, hotkey=OTHER.ss58_address, stake=900.0, validator_permit=True),
        ]
        self.transport = AxonTransport(
            self.service,
            StaticChain(*neurons),
            self.log,
            wallet=MinerWallet(),
            admission=Admission(),
            ip="127.0.0.1",
            port=free_port(),
            external_ip="127.0.0.1",
            version="1.2.3",
            **settings,
        )
        self.target = self.transport.axon.info()
        self.url = f"http://127.0.0.1:{self.target.port}"

    async def ask(self, request: GenerateAsset | None = None, **fields: Any) -> GenerateAsset:
        timeout = fields.pop("timeout", 30.0)
        asked = request or GenerateAsset(**{"prompt": "a blue cube", "task_id": "t", **fields})
        reply: GenerateAsset = await self.dendrite.call(
            self.target, asked, timeout=timeout, deserialize=False
        )
        return reply

    def signed(
        self, key: Any = VALIDATOR, nonce: int | None = None, **fields: Any
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Headers and body of a request as a Dendrite sends them, with a nonce of our choice."""
        synapse = GenerateAsset(**{"prompt": "a blue cube", "task_id": "t", **fields})
        synapse = self.dendrite.preprocess_synapse_for_request(self.target, synapse, 12.0)
        synapse.dendrite.hotkey = key.ss58_address
        synapse.dendrite.nonce = time.time_ns() if nonce is None else nonce
        message = (
            f"{synapse.dendrite.nonce}.{key.ss58_address}.{MINER.ss58_address}."
            f"{synapse.dendrite.uuid}.{synapse.body_hash}"
        )
        synapse.dendrite.signature = "0x" + key.sign(message).hex()
        return synapse.to_headers(), synapse.model_dump()

    async def post(
        self, headers: dict[str, str], body: Any, path: str = "/GenerateAsset"
    ) -> tuple[int, Any]:
        data = json.dumps(body) if isinstance(body, dict) else body
        headers = {**headers, "content-type": "application/json"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url + path, headers=headers, data=data) as response,
        ):
            return response.status, await response.json(content_type=None)

    def events(self, *names: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    def no_internet() -> str:
        raise AssertionError("the internet was asked for our address")

    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", no_internet)

    @asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[Running]:
        async with offline_dendrite(VALIDATOR) as dendrite:
            miner = Running(tmp_path, dendrite, **settings)
            try:
                await miner.service.start()
                await miner.transport.serve()
                yield miner
            finally:
                miner.generator.release.set()
                await miner.service.drain()
                await miner.transport.close()
                miner.log.close()

    return running


@pytest.fixture
async def miner(start: Start) -> AsyncIterator[Running]:
    async with start() as running:
        yield running


async def test_a_plain_dendrite_gets_an_asset(miner: Running) -> None:
    reply = await miner.ask(seed=7, budget_s=20.0)
    assert reply.dendrite.status_code == 200
    assert (reply.outcome, reply.reason_code, reply.task_id) == ("completed", "ok", "t")
    asset = base64.b64decode(reply.results)
    assert asset == ball_spz()
    assert len(spz.decode(asset)) == reply.gaussians == len(ball())
    assert reply.size_bytes == len(asset)
    assert reply.timings == PRIOR
    assert (reply.prompt, reply.seed, reply.miner_version) == ("a blue cube", 7, "1.2.3")
    (line,) = miner.events("answered")
    assert line["caller"] == VALIDATOR.ss58_address
    assert (line["uid"], line["transport"], line["budget_s"]) == (1, "axon", 19.0)


async def test_an_unregistered_hotkey_gets_403_with_the_reason(miner: Running) -> None:
    async with offline_dendrite(STRANGER) as dendrite:
        miner.dendrite = dendrite
        reply = await miner.ask()
    assert reply.dendrite.status_code == 403
    assert "the hotkey is not registered on this subnet" in reply.dendrite.status_message
    assert miner.generator.ran == []
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
    assert miner.generator.ran == []


async def test_a_body_changed_on_the_way_is_refused(miner: Running) -> None:
    for name in ("task_type", "task_id", "prompt", "seed", "budget_s"):
        headers, body = miner.signed(seed=1, budget_s=10.0)
        body[name] = {"seed": 2, "budget_s": 11.0}.get(name, "changed")
        status, reply = await miner.post(headers, body)
        assert status == 400, name
        assert "Hash mismatch" in reply["message"]
    assert miner.generator.ran == []


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
    miner.transport._started = 0
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
    assert miner.generator.ran == []
    assert (await miner.ask()).outcome == "completed"


@pytest.mark.parametrize("header", ["nonce", "version"])
async def test_a_header_that_is_no_number_harms_nobody(miner: Running, header: str) -> None:
    headers, body = miner.signed()
    # Bittensor answers 500 before any code of ours is asked.
    status, _ = await miner.post({**headers, f"bt_header_dendrite_{header}": "x"}, body)
    assert status == 500
    assert (await miner.ask()).outcome == "completed"


async def test_a_message_from_before_the_start_is_refused_as_it_may_be_a_replay(
    miner: Running,
) -> None:
    status, reply = await miner.post(*miner.signed(nonce=time.time_ns() - 8 * SECOND))
    assert status == 401
    assert "before this miner started" in reply["message"]


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
        # FastAPI answers 422 to what is no JSON at all.
        assert (await miner.post(headers, body))[0] in (400, 422), body
    assert miner.generator.ran == []
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
    assert miner.generator.ran == []


async def test_an_image_comes_back_emptied(miner: Running) -> None:
    file = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    image = base64.b64encode(file.getvalue()).decode()
    reply = await miner.ask(task_type="image", prompt=image)
    assert (reply.outcome, reply.prompt) == ("completed", "")
    assert "text_to_image" not in reply.timings
    assert image[:40] not in miner.log.path.read_text()


async def test_the_signed_budget_and_the_timeout_both_shorten_the_time(miner: Running) -> None:
    by_budget = await miner.ask(budget_s=3.0)
    assert (by_budget.outcome, by_budget.reason_code) == ("dropped", "predicted_late")
    by_timeout = await miner.ask(timeout=4.0)
    assert (by_timeout.outcome, by_timeout.reason_code) == ("dropped", "predicted_late")
    assert [line["budget_s"] for line in miner.events("answered")] == [2.0, 3.0]
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
            assert "predicted 4.80 s" in reply.reason
        assert min(elapsed) < 0.1  # A busy machine may disturb some of them.
        assert miner.generator.ran == []


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
    miner.generator.hold_at = "splats"
    asking: list[Awaitable[GenerateAsset]] = [
        asyncio.create_task(miner.ask(task_id=str(number))) for number in range(3)
    ]
    for _ in range(500):
        if len(miner.events("admitted")) == 3:
            break
        await asyncio.sleep(0.01)
    refused, _ = await miner.post({}, {})
    assert refused == 403
    miner.generator.release.set()
    assert [reply.task_id for reply in await asyncio.gather(*asking)] == ["0", "1", "2"]


async def test_a_client_that_goes_away_harms_nobody(miner: Running) -> None:
    miner.generator.hold_at = "splats"
    headers, body = miner.signed()
    leaving = asyncio.create_task(miner.post(headers, body))
    await miner.generator.holding.wait()
    leaving.cancel()
    await asyncio.wait({leaving})
    miner.generator.hold_at = None
    assert (await miner.ask()).outcome == "completed"


async def test_an_answer_under_way_is_delivered_before_the_axon_closes(start: Start) -> None:
    async with start() as miner:
        miner.generator.hold_at = "splats"
        asking = asyncio.create_task(miner.ask())
        await miner.generator.holding.wait()
        draining = asyncio.create_task(miner.service.drain())
        await asyncio.sleep(0)
        late = await miner.ask()
        assert (late.outcome, late.reason_code) == ("dropped", "draining")
        miner.generator.release.set()
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
