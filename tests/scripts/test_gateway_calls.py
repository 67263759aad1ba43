"""The client's calls, against servers that answer as no gateway should."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from pydantic import SecretStr

from scripts.free_port import free_port
from scripts.gateway_calls import MAX_ANSWER_BYTES, ClientFault, GatewayClient
from tests.support.mock_gateway import KEY
from tests.support.virtual_time import in_virtual_time


@asynccontextmanager
async def strange(answer: Callable[[web.Request], web.StreamResponse]) -> AsyncIterator[str]:
    """A server that gives every request the same answer."""

    async def handle(request: web.Request) -> web.StreamResponse:
        return answer(request)

    app, port = web.Application(), free_port()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda: web.Response(body=bytes(MAX_ANSWER_BYTES + 1)), "is larger than 4,096 bytes"),
        (lambda: web.Response(text="[]"), "is no JSON object"),
        (lambda: web.Response(text='{"status": "x"}'), "answers with an unknown status: x"),
        (lambda: web.Response(text="<html>", status=404), "answered 404: a web page"),
        (lambda: web.Response(body=bytes(2**20), status=500), "answered 500"),
        (lambda: web.Response(text="[" * MAX_ANSWER_BYTES, status=400), "answered 400: [["),
        (lambda: web.Response(text="[" * MAX_ANSWER_BYTES), "is no JSON object"),
        (
            lambda: web.Response(status=302, headers={"Location": "http://other.example/"}),
            "answered 302",
        ),
        (
            lambda: web.Response(body=b"x", headers={"Content-Encoding": "gzip"}),
            "packs its answer",
        ),
    ],
)
@in_virtual_time
async def test_strange_answers_are_faults_in_one_line(
    answer: Callable[[], web.Response], words: str
) -> None:
    async with (
        strange(lambda request: answer()) as url,
        GatewayClient(url, SecretStr(KEY)) as client,
    ):
        with pytest.raises(ClientFault) as raised:
            await client.status(KEY)
    assert words in str(raised.value)
    assert len(str(raised.value)) <= 300
    assert "\n" not in str(raised.value)


@in_virtual_time
async def test_the_key_goes_into_its_header_and_nowhere_else() -> None:
    seen: list[web.Request] = []

    def answer(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(text=json.dumps({"status": "NoResult"}))

    async with strange(answer) as url, GatewayClient(url, SecretStr(KEY)) as client:
        await client.status("some-id")
        assert KEY not in repr(vars(client)["_url"])
    (request,) = seen
    assert request.headers["x-api-key"] == KEY
    assert KEY not in str(request.url)
