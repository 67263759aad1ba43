"""Runs the server of a Bittensor axon."""

import asyncio
import socket
import threading
import time
from typing import Any

from miner.transports.connection_book import ConnectionLimits
from miner.transports.limited_server import LimitedServer
from miner.transports.refusals import RefusalLog
from protocol.errors import SetupError

START_LIMIT_S = 10.0


class AxonServer:
    """Runs the server in an event loop and a thread of its own.

    `Axon.start` reports success before the server listens, and also if it never does.

    Args:
        axon: A Bittensor axon with its handlers attached.
        bound: A socket, bound and not yet listening.
        limits: Limits on connections.
        refusals: Receives refused connections and requests.
    """

    def __init__(
        self,
        axon: Any,
        bound: socket.socket,
        limits: ConnectionLimits | None = None,
        refusals: RefusalLog | None = None,
    ) -> None:
        self._axon = axon
        self._bound = bound
        self._server = LimitedServer(axon.fast_config, limits, refusals)
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Returns once the server listens.

        Raises:
            SetupError: It did not start in time.
        """
        server = self._server
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

    async def stop(self) -> None:
        """Sends the answers that are ready and stops listening."""
        self._server.should_exit = True
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, START_LIMIT_S)
        self._bound.close()
        self._axon.thread_pool.shutdown(wait=False)
