"""A real server on loopback in front of a fake engine, and a client."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
from starlette.datastructures import Headers

from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.http.server import HttpTransport
from scripts.free_port import free_port
from tests.support.fakes import FakeEngine


@dataclass(frozen=True)
class Reply:
    """An HTTP answer."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json["message"])


class Running:
    """A service and its HTTP transport."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.engine: Any = settings.pop("engine", None) or FakeEngine()
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [self.engine],
            self.log,
            budget_s=settings.pop("budget_s", 30.0),
            margin_s=1.0,
            vocabulary=settings.pop("vocabulary", ()),
            candidates=settings.pop("candidates", None),
        )
        self.port = free_port()
        values = {"ip": "127.0.0.1", "port": self.port, **settings}
        self.transport = HttpTransport(self.service, self.log, **values)

    async def ask(self, method: str, path: str, **arguments: Any) -> Reply:
        async with (
            aiohttp.ClientSession() as session,
            session.request(
                method, self.transport.url + path, allow_redirects=False, **arguments
            ) as response,
        ):
            return Reply(response.status, response.headers, await response.read())

    async def post(self, path: str = "/generate/", **arguments: Any) -> Reply:
        return await self.ask("POST", path, **arguments)

    async def exchange(self, request: bytes) -> Reply:
        """Sends bytes, and reads one answer until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            head, _, body = (await asyncio.wait_for(reader.read(), 30.0)).partition(b"\r\n\r\n")
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return Reply(int(status.split()[1]), Headers(headers), body)

    def events(self, *names: str) -> list[dict[str, Any]]:
        assert self.log.flush()
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]


Start = Callable[..., AbstractAsyncContextManager[Running]]


@asynccontextmanager
async def running(folder: Path, *, ready: bool = True, **settings: Any) -> AsyncIterator[Running]:
    """Serves until the block ends, then closes as the miner does."""
    miner = Running(folder, **settings)
    try:
        await miner.transport.serve()
        if ready:
            await miner.service.start()
        yield miner
    finally:
        if isinstance(miner.engine, FakeEngine):
            miner.engine.release.set()
        await miner.service.drain()
        await miner.transport.close()
        await miner.service.close()
        miner.log.close()


def form(**fields: Any) -> aiohttp.FormData:
    """A multipart form; bytes become files."""
    data = aiohttp.FormData(default_to_multipart=True)
    for name, value in fields.items():
        if isinstance(value, bytes):
            file = BytesIO(value)  # aiohttp warns of large bytes.
            data.add_field(name, file, filename="picture.png", content_type="image/png")
        else:
            data.add_field(name, value)
    return data
