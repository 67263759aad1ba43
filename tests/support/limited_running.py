"""A real server with short limits on its connections, and what it has refused."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from miner.score.log import ScoreLog
from miner.transports.body_limit import BodyLimit
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections
from miner.transports.failures import ServerErrors
from miner.transports.limited_server import LimitedServer
from miner.transports.refusals import RefusalLog
from miner.transports.sockets import bound_socket
from scripts.free_port import free_port
from tests.support.loopback import RawClient, RawReply
from tests.support.waiting import until

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = ConnectionLimits(
    waiting=40, waiting_per_address=20, requests=4, requests_per_address=3,
    head_s=0.3, body_s=0.6, write_s=0.4, idle_s=0.3, drain_s=0.3,
)  # fmt: skip
BODY_LIMIT_S = 0.3
PATIENT = replace(LIMITS, head_s=30.0, body_s=30.0, write_s=30.0, idle_s=30.0, drain_s=30.0)
LARGE = bytes(20_000_000)
PAGE = bytes(64 * 1024)


class Server:
    """A server, and what it has refused."""

    def __init__(self, folder: Path, limits: ConnectionLimits) -> None:
        self.port = free_port()
        self.log = ScoreLog(folder)
        self.refusals = RefusalLog(self.log, "http", time.monotonic)
        self.release = asyncio.Event()
        self.ended = 0
        app = Starlette(
            routes=[
                Route("/health", self.health, methods=["GET", "POST"]),
                Route("/echo", self.echo, methods=["POST"]),
                Route("/hold", self.hold),
                Route("/large", self.large),
                Route("/page", lambda request: Response(PAGE)),
                Route("/broken", self.broken),
            ]
        )
        app.add_middleware(
            BodyLimit, max_bytes=2**22, time_limit_s=BODY_LIMIT_S, on_refusal=self.refusals.note
        )
        app.add_middleware(ClientConnections)
        app.add_middleware(ServerErrors, refusals=self.refusals)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.server = LimitedServer(config, limits, self.refusals)

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def echo(self, request: Request) -> Response:
        return JSONResponse({"size": len(await request.body())})

    async def hold(self, request: Request) -> Response:
        await self.release.wait()
        return JSONResponse({"status": "released"})

    async def large(self, request: Request) -> Response:
        try:
            return Response(LARGE)
        finally:
            self.ended += 1

    async def broken(self, request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"half"
            raise OSError("disk")

        return StreamingResponse(parts())

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.refusals.counts)

    async def honest(self, **options: Any) -> RawReply:
        """What somebody gets who connects and asks at once."""
        client = RawClient(self.port, **options)
        try:
            return await client.ask(HEALTH)
        finally:
            client.close()

    async def until_open(self, count: int) -> None:
        """Waits until the server knows that many connections."""
        await until(lambda: len(self.server.book) == count)

    async def until_tasks(self, count: int) -> None:
        """Waits until that many requests are being answered."""
        await until(lambda: len(self.server.server_state.tasks) == count)


@asynccontextmanager
async def serving(folder: Path, limits: ConnectionLimits = PATIENT) -> AsyncIterator[Server]:
    server = Server(folder, limits)
    bound = bound_socket("127.0.0.1", server.port)
    task = asyncio.create_task(server.server.serve(sockets=[bound]))
    await until(lambda: server.server.started)
    try:
        yield server
    finally:
        server.release.set()
        server.server.should_exit = True
        await asyncio.wait_for(task, 10.0)
        bound.close()
        server.log.close()
