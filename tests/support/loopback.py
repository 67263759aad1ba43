"""What tests over loopback share."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.waiting import PATIENCE_S


@dataclass(frozen=True)
class RawReply:
    """An HTTP answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        assert self.headers["content-type"] == "application/json"
        return str(json.loads(self.body)["message"])


class RawClient:
    """A connection on which a test sends the bytes that it likes."""

    def __init__(self, port: int, *, source: str = "127.0.0.1", receive_buffer: int = 0) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.setblocking(False)
        self._received = b""

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def reply(self, within_s: float = PATIENCE_S) -> RawReply:
        """Reads one answer with a Content-Length."""
        async with asyncio.timeout(within_s):
            while b"\r\n\r\n" not in self._received:
                await self._receive()
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
            }
            size = int(headers["content-length"])
            while len(self._received) < size:
                await self._receive()
            body, self._received = self._received[:size], self._received[size:]
            return RawReply(int(first.split()[1]), headers, body)

    async def ask(self, data: bytes, within_s: float = PATIENCE_S) -> RawReply:
        await self.send(data)
        return await self.reply(within_s)

    async def closed(self, within_s: float = PATIENCE_S) -> bytes:
        """Waits until the server has closed the connection; returns what it sent before."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(within_s):
                while data := await asyncio.get_running_loop().sock_recv(self.socket, 65536):
                    self._received += data
        return self._received

    def close(self) -> None:
        self.socket.close()

    async def _receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self.socket, 65536)
        if not data:
            raise ConnectionResetError(f"closed after {self._received!r}")
        self._received += data


@contextlib.contextmanager
def silent_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections on which nothing is ever sent."""
    held = [socket.create_connection(("127.0.0.1", port), 20.0) for _ in range(count)]
    try:
        yield held
    finally:
        for connection in held:
            connection.close()


def open_descriptors() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))
