"""Strangers: silent and slow connections, forged and replayed requests, bombs, noise.

Runs in a process of its own, at a lower priority, because its work is not the miner's.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import struct
import time
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miner.chain.metagraph import Neuron
from miner.chain.wallets import open_wallet
from miner.transports.pull.dendrite import offline_dendrite
from protocol.synapses import GenerateAsset

HOST = "127.0.0.1"
LARGE_BODY_BYTES = 10_000_000
ANSWER_LIMIT_S = 30.0
RECONNECT_S = 0.5
ADDRESSES = tuple(f"127.0.0.{number}" for number in range(2, 10))
"""Where silent connections come from; on Linux, all of 127.0.0.0/8 is this machine."""

_MOST_SLOW = 24
"""Slow requests at once."""


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        axon: Port of the axon.
        http: Port of the HTTP transport.
        miner: Hotkey of the miner.
        validator: A hotkey that the miner serves, without its secret.
        recorded: Bytes of a request that the validator has signed and sent.
    """

    axon: int
    http: int
    miner: str
    validator: str
    recorded: bytes


class Strangers:
    """Sends one piece of hostile traffic after the other, and holds silent connections.

    Args:
        target: What is attacked.
        stranger: A wallet that no subnet knows.
        seed: For the order and the noise.

    Attributes:
        answers: Pieces of traffic by kind and answer: a status, "closed" or "no answer".
        silent: Silent connections that are open.
    """

    def __init__(self, target: Target, stranger: Any, seed: int) -> None:
        self._target = target
        self._stranger = stranger
        self._random = random.Random(seed)
        self._slow = asyncio.Semaphore(_MOST_SLOW)
        self.answers: Counter[tuple[str, str]] = Counter()
        self.silent = 0

    async def run(self, per_second: float, silent: int) -> None:
        """Goes on until it is cancelled.

        Args:
            per_second: Pieces of traffic in a second.
            silent: Connections to hold without a word, half of them on each port; one that is
                closed is opened again.
        """
        kinds: tuple[Callable[[], Awaitable[str]], ...] = (
            self.forged_signature,
            self.unknown_key,
            self.replay,
            self.large_body_to_the_axon,
            self.large_body_over_http,
            self.slow_body,
            self.slow_headers,
            self.image_bomb,
            self.broken_form,
            self.noise,
            self.foreign_page,
            self.upgrade,
        )
        async with asyncio.TaskGroup() as group:
            for number in range(silent):
                port = (self._target.axon, self._target.http)[number % 2]
                address = ADDRESSES[number // 2 % len(ADDRESSES)]
                group.create_task(self._stay_silent(address, port))
            while True:
                kind = self._random.choice(kinds)
                group.create_task(self._counted(kind))
                await asyncio.sleep(self._random.expovariate(per_second))

    async def forged_signature(self) -> str:
        """A request in the name of a validator, signed by nobody."""
        headers = _axon_headers(self._target, self._random)
        return await self._post(self._target.axon, "/GenerateAsset", headers, b'{"prompt": "a"}')

    async def unknown_key(self) -> str:
        """A sound request, signed by a key that is not registered."""
        miner = Neuron(uid=0, hotkey=self._target.miner, ip=HOST, port=self._target.axon)
        async with offline_dendrite(self._stranger) as dendrite:
            exchange = await dendrite.exchange(miner, GenerateAsset(prompt="a"), ANSWER_LIMIT_S)
        return str(exchange.status)

    async def replay(self) -> str:
        """A validator's request, recorded on its way and sent again."""
        return await self._send(self._target.axon, self._target.recorded)

    async def large_body_to_the_axon(self) -> str:
        """Ten megabytes, announced and sent."""
        headers = _axon_headers(self._target, self._random)
        body = b"{" + b" " * LARGE_BODY_BYTES
        return await self._post(self._target.axon, "/GenerateAsset", headers, body)

    async def large_body_over_http(self) -> str:
        """The same as a form, in chunks of no stated sum."""
        head = _head("POST", "/generate/", {"Transfer-Encoding": "chunked", **_FORM})
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        body = chunk * (3 * LARGE_BODY_BYTES // 0x10000) + b"0\r\n\r\n"
        return await self._send(self._target.http, head + body)

    async def slow_body(self) -> str:
        """A form that comes byte by byte."""
        head = _head("POST", "/generate/", {"Content-Length": "5000", **_FORM})
        return await self._send(self._target.http, head, drip=b"a" * 5000)

    async def slow_headers(self) -> str:
        """A request whose headers come byte by byte."""
        port = self._random.choice((self._target.axon, self._target.http))
        return await self._send(port, b"GET /health HTTP/1.1\r\n", drip=b"x: y\r\n" * 1000)

    async def image_bomb(self) -> str:
        """A small file that claims or unfolds to a huge picture."""
        side = self._random.choice((4096, 8192, 30_000))
        return await self._post_form("prompt_image_file", _png_bomb(side), file_name="a.png")

    async def broken_form(self) -> str:
        """A form with bytes flipped, cut and repeated."""
        body = bytearray(_form("prompt", b"", file_name=None))
        for _ in range(self._random.randint(1, 8)):
            at = self._random.randrange(len(body))
            body[at : at + self._random.randint(0, 3)] = self._random.randbytes(2)
        return await self._post(self._target.http, "/generate/", _FORM, bytes(body))

    async def noise(self) -> str:
        """Bytes that are no HTTP."""
        port = self._random.choice((self._target.axon, self._target.http))
        return await self._send(port, self._random.randbytes(200) + b"\r\n\r\n")

    async def foreign_page(self) -> str:
        """A form that a page of another site posts through a browser of this machine."""
        headers = {"Origin": "https://example.org", **_FORM}
        body = _form("prompt", b"a red car", file_name=None)
        return await self._post(self._target.http, "/generate/", headers, body)

    async def upgrade(self) -> str:
        """A WebSocket handshake."""
        port = self._random.choice((self._target.axon, self._target.http))
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        return await self._send(port, _head("GET", "/", {**headers, "Sec-WebSocket-Key": "eA=="}))

    async def _counted(self, kind: Callable[[], Awaitable[str]]) -> None:
        name = getattr(kind, "__name__", "").replace("_", " ")
        try:
            async with asyncio.timeout(2 * ANSWER_LIMIT_S):
                answer = await kind()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            answer = "closed" if isinstance(error, OSError) else "no answer"
        self.answers[name, answer] += 1

    async def _stay_silent(self, address: str, port: int) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(HOST, port, local_addr=(address, 0))
            except OSError:
                await asyncio.sleep(RECONNECT_S)
                continue
            self.silent += 1
            try:
                await reader.read()
            except OSError:
                continue
            finally:
                self.silent -= 1
                writer.close()
            await asyncio.sleep(RECONNECT_S * self._random.random())

    async def _post_form(self, field: str, data: bytes, *, file_name: str | None) -> str:
        body = _form(field, data, file_name=file_name)
        return await self._post(self._target.http, "/generate/", _FORM, body)

    async def _post(self, port: int, path: str, headers: dict[str, str], body: bytes) -> str:
        length = {"Content-Length": str(len(body))}
        return await self._send(port, _head("POST", path, {**headers, **length}) + body)

    async def _send(self, port: int, data: bytes, *, drip: bytes = b"") -> str:
        """Sends bytes, then perhaps some more slowly, and returns the status of the answer."""
        if drip:
            async with self._slow:
                return await self._exchange(port, data, drip)
        return await self._exchange(port, data, b"")

    async def _exchange(self, port: int, data: bytes, drip: bytes) -> str:
        reader, writer = await asyncio.open_connection(HOST, port)
        sending = asyncio.create_task(_write(writer, data, drip))
        try:
            line = await asyncio.wait_for(reader.readline(), ANSWER_LIMIT_S)
            parts = line.split()
            return parts[1].decode("ascii", "replace") if len(parts) > 1 else "closed"
        finally:
            sending.cancel()
            await asyncio.wait({sending})
            writer.close()


_FORM = {"Content-Type": "multipart/form-data; boundary=B"}


async def _write(writer: asyncio.StreamWriter, data: bytes, drip: bytes) -> None:
    try:
        writer.write(data)
        await writer.drain()
        for byte in drip:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(1.0)
    except OSError:
        return  # The answer, or its absence, says why.


def _head(method: str, path: str, headers: dict[str, str]) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()


def _form(field: str, data: bytes, *, file_name: str | None) -> bytes:
    name = f'; filename="{file_name}"' if file_name is not None else ""
    disposition = f'Content-Disposition: form-data; name="{field}"{name}'
    return f"--B\r\n{disposition}\r\n\r\n".encode() + data + b"\r\n--B--\r\n"


def _png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 6, 0, 0, 0)
    pixels = zlib.compress(bytes(4 * 1024 * 1024), 9)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _axon_headers(target: Target, random_numbers: random.Random) -> dict[str, str]:
    """Headers in the validator's name; everything that it has to sign is made up."""
    return {
        "Content-Type": "application/json",
        "name": "GenerateAsset",
        "timeout": "12.0",
        "bt_header_axon_ip": HOST,
        "bt_header_axon_port": str(target.axon),
        "bt_header_axon_hotkey": target.miner,
        "bt_header_dendrite_ip": HOST,
        "bt_header_dendrite_version": "10005000",
        "bt_header_dendrite_nonce": str(time.time_ns()),
        "bt_header_dendrite_uuid": "soak",
        "bt_header_dendrite_hotkey": target.validator,
        "bt_header_dendrite_signature": "0x" + random_numbers.randbytes(64).hex(),
        "computed_body_hash": "0" * 64,
    }


async def _serve(options: argparse.Namespace) -> None:
    recorded = base64.b64decode(options.recorded)
    target = Target(options.axon, options.http, options.miner, options.validator, recorded)
    stranger = open_wallet("stranger", "default", options.wallets)
    strangers = Strangers(target, stranger, options.seed)
    work = asyncio.create_task(strangers.run(options.per_second, options.silent))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    least: list[int] = []

    async def watch() -> None:
        while True:
            await asyncio.sleep(5.0)
            least.append(strangers.silent)

    watching = asyncio.create_task(watch())
    await asyncio.wait({work})
    watching.cancel()
    rows = [[kind, answer, count] for (kind, answer), count in sorted(strangers.answers.items())]
    held = sorted(least)[len(least) // 2] if least else 0
    print(json.dumps({"answers": rows, "silent_median": held}))


def main() -> None:
    """Runs until SIGTERM, then prints what came back as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--axon", type=int, required=True)
    parser.add_argument("--http", type=int, required=True)
    parser.add_argument("--miner", required=True)
    parser.add_argument("--validator", required=True)
    parser.add_argument("--wallets", type=Path, required=True)
    parser.add_argument("--recorded", required=True, help="base64")
    parser.add_argument("--per-second", type=float, required=True)
    parser.add_argument("--silent", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    os.nice(10)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
