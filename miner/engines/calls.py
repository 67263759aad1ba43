"""Calls to an object in another process over a connected socket; both ends trust each other.

Values cross by pickle, large arrays beside it: they are read into memory of their own, once.
"""

import asyncio
import contextlib
import itertools
import pickle
import queue
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from loguru import logger

from miner.engines.link import LinkLost

_COUNT = struct.Struct("!I")
_SIZE = struct.Struct("!Q")

_KEEP_ALIVE = {
    "TCP_KEEPIDLE": 20,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 50_000,
}
"""The other end's machine is lost after 50 s without a sign: a call may wait for longer."""


class Calls:
    """Calls the methods of an object that the other end serves. Used from one event loop.

    Args:
        connection: Connected; closed once the other end is lost.
        what: The other end, in words.
    """

    def __init__(self, connection: socket.socket, what: str) -> None:
        self._what = what
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._lost = ""
        self._channel = _Channel(connection, self._take, self._end)

    async def call(self, method: str, *values: Any) -> Any:
        """Calls a method; its coroutine runs beside those of other calls.

        Raises:
            LinkLost: The other end has ended, or the method raised an error.
        """
        if self._lost:
            raise LinkLost(self._lost)
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._channel.put((number, method, values))
        try:
            return await answer
        finally:
            self._waiting.pop(number, None)

    def post(self, method: str, *values: Any) -> None:
        """Calls a method, and does not wait for it."""
        self._channel.put((None, method, values))

    def hang_up(self) -> None:
        """Closes the connection; calls that wait raise LinkLost. Callable from any thread."""
        self._channel.close()

    def _take(self, value: tuple[int, Any, str]) -> None:
        number, result, error = value
        answer = self._waiting.get(number)
        if answer is None or answer.done():
            return
        if error:
            answer.set_exception(LinkLost(error))
        else:
            answer.set_result(result)

    def _end(self, reason: str) -> None:
        if self._lost:
            return
        self._lost = f"{self._what} ended or was cut off" + (f": {reason}" if reason else "")
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(LinkLost(self._lost))


class CallServer:
    """Serves the coroutine methods of an object to the `Calls` at the other end.

    Args:
        connection: Connected.
        target: The object; its methods run in the event loop that makes this.
        on_end: Called in that event loop once the other end is lost.
    """

    def __init__(
        self, connection: socket.socket, target: object, on_end: Callable[[], None]
    ) -> None:
        self._target = target
        self._running: set[asyncio.Task[None]] = set()
        self._channel = _Channel(connection, self._take, lambda reason: on_end())

    def _take(self, value: tuple[int | None, str, tuple[Any, ...]]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(*value))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, number: int | None, method: str, values: tuple[Any, ...]) -> None:
        result, error = None, ""
        try:
            result = await getattr(self._target, method)(*values)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}".splitlines()[0]
            logger.opt(exception=raised).error("the call {} failed", method)
        if number is not None:
            self._channel.put((number, result, error))


class _Channel:
    """Sends and receives values in threads of its own, so that neither holds the event loop.

    Args:
        connection: Connected.
        on_value: Called in the event loop with each value.
        on_end: Called in the event loop at the end, with the reason if it is known.
    """

    def __init__(
        self,
        connection: socket.socket,
        on_value: Callable[[Any], None],
        on_end: Callable[[str], None],
    ) -> None:
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._on_value = on_value
        self._on_end = on_end
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._send, name="send", daemon=True).start()
        threading.Thread(target=self._receive, name="receive", daemon=True).start()

    def put(self, value: Any) -> None:
        self._waiting.put((value,))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # The other end was first.
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self) -> None:
        try:
            while (waiting := self._waiting.get()) is not None:
                _send(self._connection, waiting[0])
        except OSError:
            pass
        except Exception as error:
            logger.opt(exception=error).error("a value cannot be sent")
        self.close()

    def _receive(self) -> None:
        reason = ""
        try:
            while True:
                self._tell(self._on_value, _receive(self._connection))
        except (OSError, EOFError):
            pass
        except Exception as error:
            logger.opt(exception=error).error("what was received cannot be read")
            reason = f"it sent what cannot be read: {type(error).__name__}"
        self._tell(self._on_end, reason)
        self._waiting.put(None)
        self._connection.close()

    def _tell(self, function: Callable[[Any], None], value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The event loop has ended.
            self._loop.call_soon_threadsafe(function, value)


def _send(connection: socket.socket, value: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [memoryview(head), *(buffer.raw() for buffer in buffers)]
    sizes = b"".join(_SIZE.pack(part.nbytes) for part in parts)
    connection.sendall(_COUNT.pack(len(parts)) + sizes)
    for part in parts:
        connection.sendall(part)


def _receive(connection: socket.socket) -> Any:
    (count,) = _COUNT.unpack(_exactly(connection, _COUNT.size))
    sizes = [_SIZE.unpack(_exactly(connection, _SIZE.size))[0] for _ in range(count)]
    head, *buffers = [_exactly(connection, size) for size in sizes]
    return pickle.loads(head, buffers=buffers)


def _exactly(connection: socket.socket, size: int) -> memoryview:
    """Receives as many bytes.

    Raises:
        EOFError: The connection ends before.
    """
    received = rest = np.empty(size, np.uint8).data
    while rest:
        count = connection.recv_into(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return received
