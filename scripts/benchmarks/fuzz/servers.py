"""Sends changed requests to a real miner process, over the axon or over HTTP."""

import asyncio
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from miner.chain.metagraph import Neuron
from miner.chain.wallets import open_wallet
from miner.transports.pull.dendrite import offline_dendrite
from protocol.synapses import GenerateAsset
from scripts.benchmarks.fuzz.forms import form_request
from scripts.benchmarks.fuzz.requests import Mutation, RawRequest, mutations, send
from scripts.benchmarks.soak.process import HOST, FaultyMiner, faulty_miner

CLIENTS = 8
ANSWER_LIMIT_S = 60.0
INCOMPLETE_LIMIT_S = 0.2
"""How long an answer to a request is awaited whose end the server cannot know."""

DOCUMENTED_5XX = frozenset({503})
"""500 is documented as well, but says that the miner failed, which no request may cause."""

_TASKS: tuple[dict[str, Any], ...] = (
    {"prompt": "a red car"},
    {"prompt": "a red car", "seed": -1, "task_id": "t"},
    {"task_type": "image", "prompt": "AAAA"},
    {"prompt": "x" * 2000, "task_id": "\u00e9"},
    {"prompt": "a red car", "budget_s": 1e-9},
)


@dataclass
class Answers:
    """What a server has made of changed requests.

    Attributes:
        statuses: Requests by status; "none" where the server closed without an answer.
        faults: Statuses that must not be, and complete requests without an answer, with the change.
        serves: Whether an honest request is answered with 200 afterwards.
        failures: Failures of the miner's own, as its log counts them.
    """

    statuses: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    serves: bool = False
    failures: int = 0


def ask_all(count: int, seed: int) -> dict[str, Answers]:
    """Starts a miner, sends it `count` requests over each transport, and returns the answers."""
    flags = ("--limits.per_minute", "10000")
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        faulty_miner(Path(folder), flags=flags, repeats=True) as (miner, subnet),
    ):
        signer = _Signer(open_wallet("validator", "default", subnet.wallets), miner.axon)
        found = {
            "axon": _ask("axon", miner.axon.port, signer.request, count, seed),
            "HTTP": _ask("HTTP", miner.http_port, form_request, count, seed),
        }
        found["axon"].serves = asyncio.run(signer.is_served())
        found["HTTP"].serves = _is_served(miner)
        miner.stop()
        for name, transport in (("axon", "axon"), ("HTTP", "http")):
            found[name].failures = sum(
                int(event.get("count", 1))
                for event in miner.events()
                if event.get("reason_code") == "server_error" and event["transport"] == transport
            )
    return found


def _ask(
    name: str, port: int, valid: Callable[[random.Random], RawRequest], count: int, seed: int
) -> Answers:
    found, statuses = Answers(), Counter[str]()

    def ask(mutation: Mutation) -> tuple[Mutation, int | None]:
        limit_s = ANSWER_LIMIT_S if mutation.complete else INCOMPLETE_LIMIT_S
        return mutation, send(HOST, port, mutation.message, limit_s=limit_s)

    def answers(clients: ThreadPoolExecutor) -> Iterator[tuple[Mutation, int | None]]:
        # A few at a time: what a validator signs must arrive within seconds.
        every = mutations(valid, count, seed)
        while batch := list(islice(every, 10 * CLIENTS)):
            yield from clients.map(ask, batch)

    with ThreadPoolExecutor(CLIENTS) as clients:
        for mutation, status in tqdm(answers(clients), total=count, desc=name, unit="request"):
            statuses[str(status or "none")] += 1
            if status is None and mutation.complete:
                found.faults.append(f"no answer: {mutation.name}")
            if status is not None and status >= 500 and status not in DOCUMENTED_5XX:
                found.faults.append(f"{status}: {mutation.name}")
    found.statuses = dict(sorted(statuses.items()))
    return found


class _Signer:
    """Signs the requests of a validator.

    Args:
        wallet: The validator's.
        miner: Its axon.
    """

    def __init__(self, wallet: Any, miner: Neuron) -> None:
        self._miner = miner
        self._wallet = wallet
        self._dendrite = offline_dendrite(wallet)

    def request(self, rng: random.Random) -> RawRequest:
        """Returns a request that the axon takes, once."""
        synapse = GenerateAsset(**rng.choice(_TASKS))
        synapse = self._dendrite.preprocess_synapse_for_request(self._miner, synapse, 12.0)
        lines = {
            "host": HOST,
            "connection": "close",
            "content-type": "application/json",
            **synapse.to_headers(),
        }
        headers = tuple((name.encode(), str(value).encode()) for name, value in lines.items())
        body = json.dumps(synapse.model_dump()).encode()
        return RawRequest(b"POST", b"/GenerateAsset", headers, body)

    async def is_served(self) -> bool:
        """Whether a sound request is completed."""
        async with offline_dendrite(self._wallet) as dendrite:
            request = GenerateAsset(prompt="a red car")
            exchange = await dendrite.exchange(self._miner, request, ANSWER_LIMIT_S)
        return bool(exchange.status == 200 and exchange.reply.outcome == "completed")


def _is_served(miner: FaultyMiner) -> bool:
    body = b"prompt=a+red+car"
    kind = (b"content-type", b"application/x-www-form-urlencoded")
    headers = ((b"host", HOST.encode()), (b"connection", b"close"), kind)
    request = RawRequest(b"POST", b"/generate/", headers, body)
    return send(HOST, miner.http_port, request.encode(), limit_s=ANSWER_LIMIT_S) == 200
