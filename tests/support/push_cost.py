"""What a request costs the axon's thread: python -m tests.support.push_cost"""

import asyncio
import json
import socket
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from loguru import logger

from miner.transports.pull.dendrite import offline_dendrite
from tests.support.running import STRANGER, VALIDATOR, Running

REQUESTS = 100
"""Of a kind, within what one address may have refused at once."""

ROUNDS = 3


def message(headers: dict[str, str], body: Any, path: str = "/GenerateAsset") -> bytes:
    """An HTTP request as bytes."""
    data = json.dumps(body).encode()
    lines = {
        **headers,
        "host": "x",
        "content-type": "application/json",
        "content-length": str(len(data)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


def exchange(port: int, messages: Iterable[bytes]) -> "Counter[str]":
    """Sends messages one after another over one connection; counts the statuses."""
    statuses: Counter[str] = Counter()
    with (
        socket.create_connection(("127.0.0.1", port)) as connection,
        connection.makefile("rb") as answers,
    ):
        for sent in messages:
            connection.sendall(sent)
            statuses[answers.readline().split()[1].decode()] += 1
            length = 0
            while (line := answers.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            answers.read(length)
    return statuses


def another_path(miner: Running) -> list[bytes]:
    return [message(*miner.signed(), path="/x")] * REQUESTS


def unknown_hotkey(miner: Running) -> list[bytes]:
    return [message(*miner.signed(STRANGER))] * REQUESTS


def no_number(miner: Running) -> list[bytes]:
    headers, body = miner.signed()
    return [message({**headers, "bt_header_dendrite_nonce": "x"}, body)] * REQUESTS


def wrong_signature(miner: Running) -> list[bytes]:
    headers, body = miner.signed(STRANGER)
    headers["bt_header_dendrite_hotkey"] = VALIDATOR.ss58_address
    return [message(headers, body)] * REQUESTS


def replayed(miner: Running) -> list[bytes]:
    return [message(*miner.signed(budget_s=0.5))] * REQUESTS


def served(miner: Running) -> list[bytes]:
    """Dropped by the guard at once, so that no generation is in the number."""
    return [message(*miner.signed(budget_s=0.5)) for _ in range(REQUESTS)]


KINDS: tuple[Callable[[Running], list[bytes]], ...] = (
    *(another_path, unknown_hotkey, no_number, wrong_signature, replayed, served),
)


async def cost(kind: Callable[[Running], list[bytes]]) -> "tuple[float, Counter[str]]":
    """CPU milliseconds for one request, and the statuses; on an axon of its own."""
    with tempfile.TemporaryDirectory() as folder:
        async with offline_dendrite(VALIDATOR) as dendrite:
            miner = Running(Path(folder), dendrite, per_minute=10_000)
            await miner.service.start()
            await miner.transport.serve()
            thread = miner.transport._server._thread
            assert thread is not None
            clock = time.pthread_getcpuclockid(thread.ident or 0)
            messages = kind(miner)
            before = time.clock_gettime(clock)
            statuses = await asyncio.to_thread(exchange, miner.target.port, messages)
            used = time.clock_gettime(clock) - before
            await miner.service.drain()
            await miner.transport.close()
            miner.log.close()
    return used / REQUESTS * 1e3, statuses


def main() -> None:
    """Prints a table."""
    warnings.simplefilter("ignore")
    logger.remove()
    sys.stdout.write("| request | status | CPU, ms |\n| --- | --- | --- |\n")
    for kind in KINDS:
        rows = [asyncio.run(cost(kind)) for _ in range(ROUNDS)]
        middle = statistics.median(used for used, _ in rows)
        name, found = kind.__name__.replace("_", " "), ", ".join(rows[0][1])
        sys.stdout.write(f"| {name} | {found} | {middle:.2f} |\n")


if __name__ == "__main__":
    main()
