"""Answers of validators that are broken or too large."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from miner.chain.metagraph import Neuron
from miner.transports.pull import bounded_answer
from miner.transports.pull.calls import NoAnswer
from tests.miner.transports.pull.test_calls import calling
from tests.support.running import VALIDATOR

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@asynccontextmanager
async def answering(
    respond: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Neuron]:
    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        yield Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=port)


@pytest.mark.parametrize(
    ("answer", "reached"),
    [
        (b"", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", True),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 30\r\n\r\n"
            b'{"task": {"prompt": "\\ud800"}}',
            True,
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 18\r\n\r\n"
            b'{"dendrite": null}',
            True,
        ),
        (
            b"HTTP/1.1 500 No\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\r\n"
            b'{"message": "\\u001b[2J\\n"}',
            True,
        ),
    ],
)
async def test_an_answer_that_is_no_answer(answer: bytes, reached: bool) -> None:
    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with answering(respond) as neuron, calling() as calls:
        with pytest.raises(NoAnswer) as caught:
            await calls.pull(neuron)
    assert caught.value.reached is reached
    assert str(caught.value).isprintable()


async def test_an_answer_is_measured_unpacked() -> None:
    packed = gzip.compress(bytes(2 * bounded_answer.MAX_ANSWER_BYTES))
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\nconnection: close\r\n\r\n"

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + packed)
        with suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async with answering(respond) as neuron, calling() as calls:
        with pytest.raises(NoAnswer, match="larger than 16777216 bytes"):
            await calls.pull(neuron)


async def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_answer, "MAX_ANSWER_BYTES", 2**20)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
    cut_off_after = asyncio.get_running_loop().create_future()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b'{"task": "')
        sent = 0
        with suppress(ConnectionError):
            while sent < 2**28:
                writer.write(b"x" * 2**16)
                await writer.drain()
                sent += 2**16
        cut_off_after.set_result(sent)
        writer.close()

    async with answering(respond) as neuron, calling() as calls:
        with pytest.raises(NoAnswer, match="larger than 1048576 bytes"):
            await calls.pull(neuron)
        assert 2**20 <= await cut_off_after < 2**26
