"""A worker's two calls on the wire: recorded bytes, and answers that no gateway should send."""

import asyncio
import base64
import re
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from miner.transports.clocks import SteadyClock
from miner.transports.gateway import calls as module
from miner.transports.gateway.calls import GatewayCalls, GatewayFault
from miner.transports.gateway.state import TakenTask
from protocol.gateway import TIMESTAMP_PREFIX
from tests.support.fakes import Clock, ball_spz
from tests.support.running import MINER
from tests.support.strange_servers import Respond, certificate, http, serving

NOW = 1_782_345_678.0
EMPTY = b'{"tasks": [], "gateways": []}'


class Key:
    """Signs with the text itself, so that recorded bytes need no real signature."""

    ss58_address = "5Worker"

    def sign(self, text: str) -> bytes:
        return f"signed {text}".encode()


def make(
    *, key: Any = None, tags: tuple[str, ...] = (), clock: Clock | None = None
) -> GatewayCalls:
    time = clock or Clock(NOW)
    return GatewayCalls(
        key or Key(), worker_id="splat-miner", tags=tags, clock=SteadyClock(time, time)
    )


def task(port: int, **fields: Any) -> TakenTask:
    values = {"node": f"http://127.0.0.1:{port}", "id": "7b3c", "token": "9f1e", "kind": "text"}
    return TakenTask.model_validate(
        {**values, "worker_id": "splat-miner", "taken_at": NOW, **fields}
    )


class Recorder:
    """Keeps what it is sent, and answers with these bytes in turn; the last one again and again."""

    def __init__(self, *answers: bytes | Respond) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[bytes, bytes]] = []
        self.handlers: set[Any] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.handlers.add(asyncio.current_task())
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        self.requests.append((head, await reader.readexactly(size)))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            await answer(reader, writer)
        else:
            writer.write(answer)


@asynccontextmanager
async def gateway(
    *answers: bytes | Respond, **settings: Any
) -> AsyncIterator[tuple[GatewayCalls, Recorder, int]]:
    recorder, calls = Recorder(*answers), make(**settings)
    async with serving(recorder) as port:
        try:
            yield calls, recorder, port
        finally:
            await calls.close()
            if recorder.handlers:
                await asyncio.wait(recorder.handlers)


def header(head: bytes, name: str) -> str | None:
    found = re.search(rf"(?im)^{name}: (.*)\r$", head.decode())
    return None if found is None else found[1]


SIGNATURE = base64.b64encode(b"signed 404_GATEWAY_1782345676").decode()


async def test_get_tasks_is_sent_as_recorded() -> None:
    async with gateway(http(EMPTY), tags=("a",)) as (calls, recorder, port):
        answer = await calls.get_tasks(f"http://127.0.0.1:{port}", 2)
    ((head, body),) = recorder.requests
    assert answer.tasks == ()
    assert head.startswith(b"POST /get_tasks HTTP/1.1\r\n")
    assert header(head, "content-type") == "application/json"
    assert header(head, "accept") == "application/json"
    assert header(head, "accept-encoding") == "identity"
    assert body == (
        b'{"worker_hotkey":"5Worker","signature":"' + SIGNATURE.encode() + b'",'
        b'"timestamp":"404_GATEWAY_1782345676","worker_id":"splat-miner",'
        b'"requested_task_count":2,"model":"404-3dgs","worker_tags":["a"]}'
    )


COMMON = (
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="id"\r\n\r\n7b3c\r\n'
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="signature"\r\n\r\n' + SIGNATURE.encode() + b"\r\n"
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="timestamp"\r\n\r\n404_GATEWAY_1782345676\r\n'
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="worker_hotkey"\r\n\r\n5Worker\r\n'
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="worker_id"\r\n\r\nsplat-miner\r\n'
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="assignment_token"\r\n\r\n9f1e\r\n'
    b'--B\r\nContent-Type: text/plain; charset=utf-8\r\n'
    b'Content-Disposition: form-data; name="status"\r\n\r\n'
)  # fmt: skip
"""The parts of both forms, written by hand: a gateway refuses unknown and repeated fields."""


def with_boundary(head: bytes, body: bytes) -> bytes:
    """The body, with `B` for its random boundary."""
    kind = header(head, "content-type") or ""
    assert kind.startswith("multipart/form-data; boundary=")
    boundary = kind.partition("boundary=")[2].strip('"')
    assert len(boundary) >= 16
    return body.replace(boundary.encode(), b"B")


async def test_a_result_is_sent_as_recorded_with_the_asset_last() -> None:
    async with gateway(http(b"Ok", kind="text/plain")) as (calls, recorder, port):
        await calls.add_result(task(port), "9f1e", asset=b"SPZ \x00\xff bytes")
    ((head, body),) = recorder.requests
    assert head.startswith(b"POST /add_result HTTP/1.1\r\n")
    assert header(head, "transfer-encoding") is None
    assert with_boundary(head, body) == COMMON + (
        b"success\r\n--B\r\nContent-Type: application/octet-stream\r\n"
        b'Content-Disposition: form-data; name="asset"; filename="result.spz"\r\n\r\n'
        b"SPZ \x00\xff bytes\r\n--B--\r\n"
    )


async def test_a_failure_is_sent_as_recorded_with_255_bytes_of_reason() -> None:
    async with gateway(http(b"Ok", kind="text/plain")) as (calls, recorder, port):
        await calls.add_result(task(port), "9f1e", asset=None, reason="ü" * 200)
    ((head, body),) = recorder.requests
    assert with_boundary(head, body) == COMMON + (
        b"failure\r\n--B\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b'Content-Disposition: form-data; name="reason"\r\n\r\n'
        + ("ü" * 126 + "…").encode()
        + b"\r\n--B--\r\n"
    )


async def test_a_result_has_the_name_under_which_its_task_was_taken() -> None:
    async with gateway(http(b"Ok", kind="text/plain")) as (calls, recorder, port):
        await calls.add_result(task(port, worker_id="earlier"), None, asset=None, reason="late")
    ((_, body),) = recorder.requests
    assert b'name="worker_id"\r\n\r\nearlier\r\n' in body
    assert b"assignment_token" not in body


async def test_a_real_hotkey_s_signature_verifies_and_is_88_characters() -> None:
    async with gateway(http(EMPTY), key=MINER) as (calls, recorder, port):
        await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
        await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
    bodies = [body for _, body in recorder.requests]
    fields = [dict(re.findall(rb'"(\w+)":"([^"]*)"', body)) for body in bodies]
    assert fields[0][b"signature"] != fields[1][b"signature"]  # A fresh one for each request.
    for each in fields:
        assert len(each[b"signature"]) == 88
        signature = base64.b64decode(each[b"signature"], validate=True)
        assert MINER.verify(each[b"timestamp"].decode(), "0x" + signature.hex())


@pytest.mark.parametrize("offset_s", [-7200.0, -40.0, -1.0, 0.0, 1.0, 25.0, 7200.0])
async def test_from_the_second_call_on_a_timestamp_fits_the_gateway_s_clock(
    offset_s: float,
) -> None:
    """In spite of this machine's clock; and never in the gateway's future."""
    clock = Clock(NOW + 0.9)
    dated = http(EMPTY, f"Date: {formatdate(clock() + offset_s, usegmt=True)}")
    async with gateway(dated, clock=clock) as (calls, recorder, port):
        address = f"http://127.0.0.1:{port}"
        await calls.get_tasks(address, 1)
        clock.now += 0.05
        await calls.get_tasks(address, 1)
        off = calls.clock_off(address)
    stamp = re.search(rb"404_GATEWAY_\d+", recorder.requests[1][1])
    assert stamp is not None
    age = int(clock() + offset_s) - int(stamp[0].decode().removeprefix(TIMESTAMP_PREFIX))
    assert 0 <= age <= 5
    assert (abs(off) > 5.0) == (abs(offset_s) > 5.0)
    assert off == pytest.approx(offset_s, abs=3.0)


async def test_a_wall_clock_that_is_set_moves_no_timestamp() -> None:
    wall, steady = Clock(NOW), Clock(50.0)
    calls = GatewayCalls(Key(), worker_id="w", clock=SteadyClock(wall, steady))
    recorder = Recorder(http(EMPTY, f"Date: {formatdate(NOW, usegmt=True)}"))
    async with serving(recorder) as port:
        await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
        wall.now -= 3000.0
        await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
        await calls.close()
    assert b"404_GATEWAY_1782345676" in recorder.requests[1][1]


async def test_a_redirect_is_not_followed() -> None:
    """A signature is valid for any call, so it is sent to its host alone."""
    other = Recorder(http(EMPTY))
    async with serving(other) as elsewhere:
        moved = http(b"", f"Location: http://127.0.0.1:{elsewhere}/get_tasks", status="307 Moved")
        async with gateway(moved) as (calls, _, port):
            with pytest.raises(GatewayFault, match="307, a redirect") as caught:
                await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
    assert caught.value.status == 307
    assert other.requests == []


async def test_a_certificate_that_nobody_signed_is_refused(tmp_path: Path) -> None:
    recorder, calls = Recorder(http(EMPTY)), make()
    async with serving(recorder, tls=certificate(tmp_path)) as port:
        with pytest.raises(GatewayFault, match=r"certificate .*SSL_CERT_FILE") as caught:
            await calls.get_tasks(f"https://127.0.0.1:{port}", 1)
        await calls.close()
    assert not caught.value.arrived
    assert recorder.requests == []


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")
    while True:
        writer.write(b" " * 2**20)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()  # Until the worker has given up.


BOMB = zlib.compress(bytes(50_000_000))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (endless, "larger than 3407872 bytes"),
        (silent, "no answer from 127.0.0.1:.* within 0.2 s"),
        (http(BOMB, "Content-Encoding: deflate"), "packs its answer"),
        (http(b"<html>", kind="text/html"), "not JSON"),
        (http(b"{}"), "no list of tasks"),
        (b"\x15\x03\x01\x00\x02\x02\x50", "cannot be read"),
        (b"", "closed the connection"),
        (http(EMPTY)[:-5], "cannot be read"),
        (http(b"Bad\x1b[2J request: x", status="400 Bad Request"), r"400: Bad\\x1b\[2J request: x"),
        (http(b"x" * 10**6, status="500 No"), "500: xxx"),
        (http(BOMB, "Content-Encoding: gzip", status="503 No"), "answered 503$"),
    ],
)
async def test_no_answer_breaks_the_caller(
    answer: bytes | Respond, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GET_TASKS_LIMIT_S", 0.2 if answer is silent else 5.0)
    async with gateway(answer) as (calls, _, port):
        with pytest.raises(GatewayFault, match=words) as caught:
            await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
    assert caught.value.arrived
    assert len(str(caught.value)) <= 300
    assert "\x1b" not in str(caught.value)
    assert "signed" not in str(caught.value)


async def test_a_node_that_is_not_there_cannot_have_got_the_result() -> None:
    calls = make()
    async with serving(b"") as port:
        pass
    with pytest.raises(GatewayFault, match=r"no connection to 127\.0\.0\.1") as caught:
        await calls.add_result(task(port), "9f1e", asset=ball_spz())
    assert (caught.value.arrived, caught.value.status) == (False, 0)
    await calls.close()


@pytest.mark.parametrize("answer", [http(b"Ok"), http(BOMB, "Content-Encoding: gzip"), endless])
async def test_a_result_is_taken_with_status_200_and_any_body(answer: bytes | Respond) -> None:
    async with gateway(answer) as (calls, _, port):
        await calls.add_result(task(port), "9f1e", asset=b"spz")


async def test_the_wait_that_a_gateway_asks_for_is_bounded() -> None:
    for after, seconds in (("17", 17.0), ("99999", 600.0), ("soon", 0.0), ("-1", 0.0)):
        limited = http(b"", f"Retry-After: {after}", status="429 Too Many Requests")
        async with gateway(limited) as (calls, _, port):
            with pytest.raises(GatewayFault) as caught:
                await calls.add_result(task(port), None, asset=b"spz")
        assert caught.value.retry_after_s == seconds


async def test_no_cookie_and_no_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with gateway(http(EMPTY, "Set-Cookie: a=b")) as (calls, recorder, port):
        for _ in range(2):
            await calls.get_tasks(f"http://127.0.0.1:{port}", 1)
    assert header(recorder.requests[1][0], "cookie") is None


def test_the_session_verifies_certificates_and_unpacks_nothing() -> None:
    async def look() -> SimpleNamespace:
        session = module._new_session()
        connector = session.connector
        await session.close()
        assert isinstance(connector, aiohttp.TCPConnector)
        return SimpleNamespace(ssl=connector._ssl, unpacks=session.auto_decompress)

    seen = asyncio.run(look())
    assert (seen.ssl, seen.unpacks) == (True, False)
