"""Broken requests against the real server."""

import asyncio
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from loguru import logger

from scripts.benchmarks.fuzz.forms import form_request
from scripts.benchmarks.fuzz.requests import Mutation, mutations, send
from tests.miner.transports.http.test_statuses import ROWS
from tests.support.http_running import running

DOCUMENTED = {status for _, _, status, _ in ROWS}


async def test_five_hundred_mutated_requests_get_documented_answers_and_the_server_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[str] = []
    sink = logger.add(errors.append, format="{message}", level="ERROR")
    statuses: Counter[int | None] = Counter()
    loop = asyncio.get_running_loop()
    # Threads of their own: the server takes bodies apart in those of the event loop.
    clients = ThreadPoolExecutor(8)
    try:
        async with running(tmp_path) as miner:

            async def ask(mutation: Mutation) -> None:
                limit_s = 20.0 if mutation.complete else 0.3
                call = partial(send, "127.0.0.1", miner.port, mutation.message, limit_s=limit_s)
                status = await loop.run_in_executor(clients, call)
                statuses[status] += 1
                # A fault of the miner is documented as well, but none of these may cause one.
                assert status is None or status in DOCUMENTED - {500}, mutation.name
                assert status is not None or not mutation.complete, mutation.name

            await asyncio.gather(*map(ask, mutations(form_request, 500, seed=17)))
            assert (await miner.post(data={"prompt": "a blue cube"})).status == 200
            refused = {line["reason_code"] for line in miner.events("refused")}
    finally:
        clients.shutdown()
        logger.remove(sink)
    assert statuses.total() == 500
    # The mutations reach beyond the first check, and some forms stay good.
    assert {200, 400, 404, 405, 415, 422} <= set(statuses)
    assert "server_error" not in refused
    assert errors == []
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []
