"""A node of the mock gateway on a port, over aiohttp: plain HTTP, as for tests of the real one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate

import zstandard
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from miner.mock_gateway.client_routes import FIELD_BYTES, MAX_BODY_BYTES, origin
from miner.mock_gateway.faults import Fault, refusal_of
from miner.mock_gateway.limits import MinuteWindows
from miner.mock_gateway.node import MockNode
from miner.mock_gateway.replies import GatewayRefusal, GatewayReply, bad_request, by_accept, text
from miner.mock_gateway.rules import KeyOwner
from miner.mock_gateway.worker_routes import MAX_BODY_BYTES as MAX_GET_TASKS_BYTES
from miner.transports.sockets import bound_socket
from protocol.gateway import (
    ADD_RESULT,
    ADD_TASK,
    GET_ID,
    GET_LOAD,
    GET_RESULT,
    GET_STATUS,
    GET_TASKS,
)
from protocol.text import printable

GRACE_S = 1.0
"""Seconds that unfinished requests have when the server stops."""

_CHUNK_BYTES = 2**16
_FORM = "multipart/form-data"

_Route = Callable[[web.Request], Awaitable[GatewayReply]]


class GatewayServer:
    """Serves a node.

    Args:
        node: Answers the requests.
        ip: Address to listen on.
        port: Port to listen on.
        slow_s: Seconds before the body of a call with the fault "slow" is read.
        storing_s: Seconds between the last byte of a result and its being stored.

    Raises:
        SetupError: The port cannot be used.
    """

    def __init__(
        self, node: MockNode, *, ip: str, port: int, slow_s: float = 0.0, storing_s: float = 0.0
    ) -> None:
        self._node = node
        self._slow_s, self._storing_s = slow_s, storing_s
        app = web.Application(middlewares=[self._router_errors()])
        routes: tuple[tuple[str, str, _Route], ...] = (
            ("POST", GET_TASKS, self._get_tasks),
            ("POST", ADD_RESULT, self._add_result),
            ("POST", ADD_TASK, self._add_task),
            ("GET", GET_STATUS, self._get_status),
            ("GET", GET_RESULT, self._get_result),
            ("GET", GET_LOAD, self._get_load),
            ("GET", GET_ID, self._get_id),
            ("GET", "/metrics", self._get_metrics),
        )
        for method, path, route in routes:
            app.router.add_route(method, path, self._handler(route))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_S)
        self._socket = bound_socket(ip, port, setting="--gateway.port")

    async def start(self) -> None:
        """Returns once the node listens."""
        await self._runner.setup()
        await web.SockSite(self._runner, self._socket).start()

    async def stop(self) -> None:
        """Stops listening; unfinished requests have a second."""
        await self._runner.cleanup()
        self._socket.close()

    def _router_errors(self) -> Middleware:
        @web.middleware
        async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                return await handler(request)
            except (web.HTTPMethodNotAllowed, web.HTTPNotFound) as error:
                reply = by_accept(error.status, request.headers.get("Accept", ""))
                return self._response(request, reply)

        return answer

    def _handler(self, route: _Route) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            try:
                return self._response(request, await route(request))
            except GatewayRefusal as refusal:
                return self._response(request, refusal.reply)
            except (HttpProcessingError, web.RequestPayloadError) as error:
                words = f"Field error: {printable(str(error), 200)}"
                return self._response(request, bad_request(words).reply)

        return answer

    def _response(self, request: web.Request, reply: GatewayReply) -> web.Response:
        headers = {
            **reply.headers,
            "Content-Type": reply.content_type,
            "Date": formatdate(self._node.cluster.clock(), usegmt=True),
        }
        body = reply.body
        if body and "zstd" in request.headers.get("Accept-Encoding", "").lower():
            headers["Content-Encoding"] = "zstd"
            body = zstandard.compress(body)
        return web.Response(status=reply.status, body=body, headers=headers)

    async def _get_tasks(self, request: web.Request) -> GatewayReply:
        accept = request.headers.get("Accept", "")
        fault = self._node.cluster.faults.draw(GET_TASKS)
        body = await self._body(request, MAX_GET_TASKS_BYTES, fault)
        if refusal := refusal_of(fault, accept):
            raise refusal
        reply = self._node.get_tasks(body, accept=accept, unstored=fault == "unstored")
        return self._lost(request, fault, reply)

    async def _add_result(self, request: web.Request) -> GatewayReply:
        self._limit(self._node.results, request)
        fault = self._node.cluster.faults.draw(ADD_RESULT)
        refusal = refusal_of(fault, request.headers.get("Accept", ""))
        limit = self._node.cluster.rules.max_result_bytes
        form = self._node.result_form()
        await self._slow(fault)
        async for name, part in _parts(request, limit):
            if refusal is None:
                form.begin(name)
            value = bytearray()
            while chunk := await part.read_chunk(_CHUNK_BYTES):
                if refusal is None:
                    value += chunk
                    if len(value) > form.limit:
                        raise form.too_large()
            if refusal is None:
                form.end(bytes(value))
        if refusal is not None:
            raise refusal
        store = form.complete()
        if self._storing_s:
            await asyncio.sleep(self._storing_s)
        return self._lost(request, fault, store())

    async def _add_task(self, request: web.Request) -> GatewayReply:
        self._limit(self._node.submissions, request)
        owner = self._owner(request)
        self._node.origins[origin(request.headers.get("x-client-origin"))] += 1
        if "Content-Type" not in request.headers:
            raise bad_request("Missing content-type")
        if request.content_type != _FORM:
            return self._node.clients.add_json(
                await self._body(request, MAX_BODY_BYTES, None), owner
            )
        fields: list[tuple[str | None, bytes]] = []
        async for name, part in _parts(request, MAX_BODY_BYTES):
            value, limit = bytearray(), FIELD_BYTES.get(name or "", 0)
            while len(value) <= limit and (chunk := await part.read_chunk(_CHUNK_BYTES)):
                value += chunk
            fields.append((name, bytes(value)))
            if len(value) > limit:
                break
        return self._node.clients.add_form(fields, owner)

    async def _get_status(self, request: web.Request) -> GatewayReply:
        self._limit(self._node.statuses, request)
        return self._node.clients.status(request.query)

    async def _get_result(self, request: web.Request) -> GatewayReply:
        answer = self._node.clients.result(request.query, self._owner(request))
        return await asyncio.to_thread(answer)

    async def _get_load(self, request: web.Request) -> GatewayReply:
        self._limit(self._node.results, request)
        return self._node.cluster.load()

    async def _get_id(self, request: web.Request) -> GatewayReply:
        return text(200, str(self._node.node_id))

    async def _get_metrics(self, request: web.Request) -> GatewayReply:
        return self._node.metrics()

    def _owner(self, request: web.Request) -> KeyOwner:
        key = request.headers.get("x-api-key")
        return self._node.cluster.keys.owner(key, request.remote or "")

    def _limit(self, windows: MinuteWindows, request: web.Request) -> None:
        if not windows.allow(request.remote or ""):
            raise GatewayRefusal(by_accept(429, request.headers.get("Accept", "")))

    async def _slow(self, fault: Fault | None) -> None:
        if fault == "slow":
            await asyncio.sleep(self._slow_s)

    async def _body(self, request: web.Request, limit: int, fault: Fault | None) -> bytes:
        await self._slow(fault)
        body = bytearray()
        async for chunk in request.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                raise GatewayRefusal(by_accept(413, request.headers.get("Accept", "")))
        return bytes(body)

    def _lost(self, request: web.Request, fault: Fault | None, reply: GatewayReply) -> GatewayReply:
        if fault == "lost" and request.transport is not None:
            request.transport.abort()
        return reply


async def _parts(
    request: web.Request, limit: int
) -> AsyncIterator[tuple[str | None, BodyPartReader]]:
    """Yields the parts of a form, each to be read before the next.

    Raises:
        GatewayRefusal: It is no form, is damaged, or is larger than the limit.
    """
    if "Content-Type" not in request.headers:
        raise bad_request("Missing content-type")
    if request.content_type != _FORM:
        raise bad_request("Invalid content-type, expected multipart/form-data")
    if (request.content_length or 0) > limit:
        raise GatewayRefusal(by_accept(413, request.headers.get("Accept", "")))
    try:
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            if not isinstance(part, BodyPartReader):
                raise bad_request("Field error: nested forms are not taken")
            yield part.name, part
    except ValueError as error:
        raise bad_request(f"Field error: {str(error)[:200]}") from None
