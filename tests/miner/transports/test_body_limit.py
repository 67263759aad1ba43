import asyncio
import json
from typing import Any

import pytest

from miner.transports.body_limit import BodyLimit, Message, Receive, Send
from miner.transports.refusals import Refusal


class Client:
    """One HTTP request, part by part, as an ASGI server would hand it over."""

    def __init__(self, *parts: bytes | float, declared: int | None = None) -> None:
        self.parts = list(parts)
        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        self.scope: dict[str, Any] = {"type": "http", "headers": headers}
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        part = self.parts.pop(0) if self.parts else b""
        if isinstance(part, float):
            await asyncio.sleep(part)
            return await self.receive()
        return {"type": "http.request", "body": part, "more_body": bool(self.parts)}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        starts = [m["status"] for m in self.sent if m["type"] == "http.response.start"]
        assert len(starts) == 1
        return int(starts[0])

    @property
    def text(self) -> str:
        return str(json.loads(self.sent[-1]["body"])["message"])


class Echo:
    """Reads the whole body and answers 200, or 500 if the client went away."""

    def __init__(self) -> None:
        self.body = b""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        status = 200
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                status = 500
                break
            self.body += message["body"]
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": self.body})


async def ask(client: Client, *, time_limit_s: float = 5.0) -> tuple[Echo, list[Refusal]]:
    echo, refused = Echo(), list[Refusal]()
    limit = BodyLimit(echo, max_bytes=10, time_limit_s=time_limit_s, on_refusal=refused.append)
    await limit(client.scope, client.receive, client.send)
    return echo, refused


@pytest.mark.parametrize("parts", [(b"",), (b"0123456789",), (b"01234", b"56789"), (b"0",) * 10])
async def test_a_body_within_the_limit_passes_unchanged(parts: tuple[bytes, ...]) -> None:
    client = Client(*parts)
    echo, refused = await ask(client)
    assert client.status == 200
    assert echo.body == b"".join(parts)
    assert refused == []


async def test_a_declared_size_is_refused_before_anything_is_read() -> None:
    client = Client(b"x" * 11, declared=11)
    echo, refused = await ask(client)
    assert (client.status, client.text) == (
        413,
        "the body has more than 10 bytes, which is the limit",
    )
    assert echo.body == b""
    assert [refusal.code for refusal in refused] == ["body_too_large"]
    assert len(client.parts) == 1


@pytest.mark.parametrize("declared", [None, 3])
async def test_a_streamed_body_is_cut_at_the_limit_whatever_was_declared(
    declared: int | None,
) -> None:
    client = Client(b"01234", b"56789", b"x", b"never read", declared=declared)
    echo, refused = await ask(client)
    assert client.status == 413
    assert echo.body == b"0123456789"
    assert [refusal.code for refusal in refused] == ["body_too_large"]
    assert client.parts == [b"never read"]


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    client = Client(b"01", 0.2, b"23")
    _, refused = await ask(client, time_limit_s=0.05)
    assert client.status == 408
    assert [refusal.code for refusal in refused] == ["slow_body"]


async def test_an_application_that_says_nothing_after_the_cut_is_spoken_for() -> None:
    async def silent(scope: Any, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    client = Client(b"x" * 6, b"x" * 6, b"")
    limit = BodyLimit(silent, max_bytes=10, time_limit_s=5.0, on_refusal=lambda refusal: None)
    await limit(client.scope, client.receive, client.send)
    assert client.status == 413


async def test_once_the_body_is_there_the_application_may_take_its_time() -> None:
    async def slow(scope: Any, receive: Receive, send: Send) -> None:
        await receive()
        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    client = Client(b"0")
    limit = BodyLimit(slow, max_bytes=10, time_limit_s=0.02, on_refusal=lambda refusal: None)
    await limit(client.scope, client.receive, client.send)
    assert client.status == 200


async def test_what_is_not_http_passes() -> None:
    seen = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    client = Client()
    client.scope = {"type": "lifespan"}
    limit = BodyLimit(app, max_bytes=1, time_limit_s=1.0, on_refusal=lambda refusal: None)
    await limit(client.scope, client.receive, client.send)
    assert seen == ["lifespan"]
