"""A server whose process may open few files: it says so, and serves on when none is left."""

import asyncio
import contextlib
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from miner.transports.descriptors import allow_open_files
from scripts.free_port import free_port
from tests.support.loopback import RawClient, silent_connections
from tests.support.waiting import PATIENCE_S

ROOT = Path(__file__).parents[3]
HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

PROGRAM = """
import os, resource, socket, sys, time
from pathlib import Path
soft, hard, spare, port = map(int, sys.argv[1:5])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
import asyncio, uvicorn
from miner.score.log import ScoreLog
from miner.transports.limited_server import LimitedServer
from miner.transports.refusals import RefusalLog
from miner.transports.sockets import bound_socket

async def app(scope, receive, send):
    body = str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})

async def main():
    refusals = RefusalLog(ScoreLog(Path(sys.argv[5])), "http", time.monotonic)
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off")
    server = LimitedServer(config, None, refusals)
    bound = bound_socket("127.0.0.1", port)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await asyncio.sleep(0.2)
    if spare:  # Another part of the program takes the others.
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            for each in taken[:spare]:
                os.close(each)
    print("ready", flush=True)
    await serving

asyncio.run(main())
"""


class Process:
    def __init__(self, port: int, process: asyncio.subprocess.Process, errors: Path) -> None:
        self.port = port
        self.process = process
        self._errors = errors

    async def honest(self, within_s: float = PATIENCE_S) -> bytes:
        client = RawClient(self.port)
        try:
            reply = await client.ask(HEALTH, within_s)
        finally:
            client.close()
        assert reply.status == 200
        return reply.body

    @property
    def errors(self) -> str:
        return self._errors.read_text()


@contextlib.asynccontextmanager
async def process(folder: Path, *, soft: int, hard: int, spare: int = 0) -> AsyncIterator[Process]:
    port, errors = free_port(), folder / "errors.txt"
    arguments = [str(value) for value in (soft, hard, spare, port)]
    with errors.open("w") as file:
        started = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", PROGRAM, *arguments, str(folder)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=file,
        )
        try:
            assert started.stdout is not None
            assert await started.stdout.readline() == b"ready\n", errors.read_text()
            yield Process(port, started, errors)
        finally:
            if started.returncode is None:
                started.kill()
            await started.wait()


async def test_a_low_soft_limit_is_raised_without_a_word(tmp_path: Path) -> None:
    async with process(tmp_path, soft=64, hard=20_000) as server:
        assert int(await server.honest()) == 16 * 1024
        assert "raise the limit" not in server.errors


async def test_with_a_low_hard_limit_a_server_keeps_fewer_and_nobody_is_shut_out(
    tmp_path: Path,
) -> None:
    async with process(tmp_path, soft=64, hard=256) as server:
        with await asyncio.to_thread(lambda: silent_connections(server.port, 600)):
            for _ in range(10):
                assert int(await server.honest()) == 256
        assert "a server keeps 32 waiting connections instead of 1024" in server.errors
        assert "ulimit" in server.errors


async def test_a_server_without_descriptors_serves_on_and_says_so(tmp_path: Path) -> None:
    async with process(tmp_path, soft=1024, hard=1024, spare=6) as server:
        with await asyncio.to_thread(lambda: silent_connections(server.port, 200)):
            for _ in range(3):
                await server.honest()
        await server.honest()
        assert server.process.returncode is None
        warnings = [line for line in server.errors.splitlines() if "out_of_files" in line]
        assert len(warnings) == 1
        assert "out of system resource" not in server.errors
        assert "Traceback" not in server.errors


@pytest.fixture
def kept_limit() -> Iterator[tuple[int, int]]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_a_limit_is_never_lowered(kept_limit: tuple[int, int]) -> None:
    soft, hard = kept_limit
    assert allow_open_files(10) == soft
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    assert allow_open_files(soft) == soft
