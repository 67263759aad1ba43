"""Runs the server of a Bittensor axon."""

import asyncio
import socket
import threading
import time
from typing import Any

from protocol.errors import SetupError

START_LIMIT_S = 10.0


class AxonServer:
    """Runs the server in an event loop and a thread of its own.

    `Axon.start` reports success before the server listens, and also if it never does.

    Args:
        axon: A Bittensor axon with its handlers attached.
        bound: A socket, bound and not yet listening.
    """

    def __init__(self, axon: Any, bound: socket.socket) -> None:
        self._axon = axon
        self._bound = bound
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Returns once the server listens.

        Raises:
            SetupError: It did not start in time.
        """
        server = self._axon.fast_server
        self._thread = threading.Thread(
            target=server.run, args=([self._bound],), name="axon", daemon=True
        )
        self._thread.start()
        limit = time.monotonic() + START_LIMIT_S
        while not server.started:
            if not self._thread.is_alive() or time.monotonic() > limit:
                raise SetupError(
                    f"the axon did not start to listen on port {self._axon.port}",
                    fix="see the lines above; try another --axon.port",
                )
            await asyncio.sleep(0.01)
        self._axon.started = True

    async def stop(self) -> None:
        """Sends the answers that are ready and stops listening."""
        self._axon.fast_server.should_exit = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, START_LIMIT_S)
        self._bound.close()
        self._axon.thread_pool.shutdown(wait=False)
