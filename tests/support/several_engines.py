"""A service on two engines with processes of their own, and requests for it."""

import asyncio
from typing import Any

from miner.request import Answer, Caller
from protocol.errors import SetupError
from tests.miner.conftest import MakeBench
from tests.support.far_engines import MortalEngine
from tests.support.service_bench import Bench

GONE = SetupError("the node is gone", fix="start it")


def two(make_bench: MakeBench, **settings: Any) -> tuple[Bench, list[MortalEngine]]:
    engines = [MortalEngine("one"), MortalEngine("two")]
    return make_bench(*engines, **settings), engines


async def all_up(bench: Bench) -> None:
    """Starts the service, and waits for all its engines."""
    await bench.service.start()
    await asyncio.sleep(10.0)
    assert all(engine.up for engine in bench.service.snapshot().engines)


async def asked(bench: Bench, count: int, **fields: Any) -> "list[asyncio.Task[Answer]]":
    """Requests of as many callers, all of which have started."""
    asking = [bench.ask(str(i), caller=Caller(f"5{i}"), **fields) for i in range(count)]
    await asyncio.sleep(0.05)
    return asking


def codes(answers: "list[Answer]") -> list[str]:
    return [answer.reason_code for answer in answers]


def one_line_each(bench: Bench, count: int) -> bool:
    lines = [line["task_id"] for line in bench.events("answered")]
    return sorted(lines) == sorted(str(i) for i in range(count))
