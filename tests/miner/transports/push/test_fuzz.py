"""500 requests that no sound client sends: none gets a 5xx, and honest callers are served after."""

import asyncio
import json
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from loguru import logger

from scripts.benchmarks.fuzz.requests import MUTATORS, Mutation, RawRequest, mutations, send
from tests.miner.transports.push.test_push_protocol_page import documented_codes
from tests.support.running import OTHER, VALIDATOR, Running, Start

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

COUNT, SEED = 500, 17
TASKS: tuple[dict[str, Any], ...] = (
    {},
    {"seed": -1},
    {"task_type": "image", "prompt": "AAAA"},
    {"prompt": "x" * 2000, "task_id": "é"},
    {"budget_s": 1e-9},
)


def signed_request(miner: Running, rng: random.Random) -> RawRequest:
    """A request that the axon takes, with a nonce of its own."""
    headers, body = miner.signed(rng.choice((VALIDATOR, OTHER)), **rng.choice(TASKS))
    lines = {"host": "x", "connection": "close", "content-type": "application/json", **headers}
    return RawRequest(
        b"POST",
        b"/GenerateAsset",
        tuple((name.encode(), value.encode()) for name, value in lines.items()),
        json.dumps(body).encode(),
    )


async def test_mutated_requests_get_no_5xx_and_leave_the_axon_serving(start: Start) -> None:
    errors: list[str] = []
    sink = logger.add(lambda text: errors.append(str(text)), level="ERROR")
    statuses: Counter[int | None] = Counter()
    loop = asyncio.get_running_loop()
    # Threads of their own: most of the time they wait for what never comes.
    with ThreadPoolExecutor(8) as clients:
        async with start(per_minute=10 * COUNT) as miner:

            async def ask(mutation: Mutation) -> None:
                limit_s = 20.0 if mutation.complete else 0.1
                call = partial(
                    send, "127.0.0.1", miner.target.port, mutation.message, limit_s=limit_s
                )
                status = await loop.run_in_executor(clients, call)
                statuses[status] += 1
                assert status is None or status < 500, mutation.name
                if mutation.complete and b"HTTP/1.1" in mutation.message:
                    assert status is not None, mutation.name

            requests = mutations(lambda rng: signed_request(miner, rng), COUNT, SEED)
            await asyncio.gather(*map(ask, requests))
            reply = await miner.ask()
            assert (reply.dendrite.status_code, reply.outcome) == (200, "completed")
            counts = dict(miner.transport._refusals.counts)
    logger.remove(sink)
    assert errors == []
    assert "server_error" not in counts
    assert set(statuses) - {None, 200} <= {status for status, _ in documented_codes()}
    # It reaches every part of the axon, or it says little.
    assert statuses.keys() >= {200, 400, 401, 403, 404, 405, 415}
    assert {"bad_headers", "bad_body", "bad_signature", "hash_mismatch", "bad_http"} <= set(counts)


def test_a_seed_always_gives_the_same_requests() -> None:
    def valid(rng: random.Random) -> RawRequest:
        body = json.dumps({"a": [1, {"b": rng.random()}]}).encode()
        return RawRequest(b"POST", b"/x", ((b"host", b"x"), (b"a", b"1")), body)

    first, again, other = (list(mutations(valid, 300, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    names = {part for mutation in first for part in mutation.name.split(" + ")}
    assert names == {"raw bytes", *(mutator.__name__ for mutator in MUTATORS)}
