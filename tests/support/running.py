"""A miner on a real Axon over loopback, with real sr25519 keys, and a Dendrite to ask it with."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import bittensor as bt

from miner.chain.metagraph import Neuron
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.push.axon import AxonTransport
from miner.transports.push.checks import Admission
from protocol.synapses import GenerateAsset
from scripts.free_port import free_port
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine


def new_key() -> Any:
    return bt.Keypair.create_from_mnemonic(bt.Keypair.generate_mnemonic())


MINER, VALIDATOR, OTHER, STRANGER = (new_key() for _ in range(4))


class MinerWallet:
    hotkey = MINER
    coldkeypub = MINER


class Running:
    """A miner on a fake engine, and a plain Dendrite to ask it with."""

    def __init__(self, folder: Path, dendrite: Any, **settings: Any) -> None:
        self.engine: FakeEngine = settings.pop("engine", None) or FakeEngine()
        self.log = ScoreLog(folder)
        self.dendrite = dendrite
        self.service = MinerService(
            [self.engine],
            self.log,
            budget_s=settings.pop("budget_s", 30.0),
            margin_s=settings.pop("margin_s", 1.0),
            vocabulary=settings.pop("vocabulary", ()),
            candidates=settings.pop("candidates", None),
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
            ip=settings.pop("ip", "127.0.0.1"),
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
        assert self.log.flush()
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]


def seconds_by_stage(engine: FakeEngine) -> dict[str, float]:
    """What the last plan of a fake engine has taken, by stage, as it was reported."""
    seconds: dict[str, float] = {}
    for step in engine.plans[-1].steps:
        seconds[step.stage] = seconds.get(step.stage, 0.0) + engine.seconds[step.stage]
    return seconds


Start = Callable[..., Any]
