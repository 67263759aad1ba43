"""An HTTP server on a port, in the running event loop."""

import asyncio
import time

import uvicorn

from miner.transports.body_limit import App
from miner.transports.connection_book import ConnectionLimits
from miner.transports.limited_server import LimitedServer
from miner.transports.refusals import RefusalLog
from miner.transports.sockets import bound_socket
from protocol.errors import SetupError

LIMIT_S = 10.0
"""Seconds that the start may take, and the end."""


class ServedPort:
    """Binds a port at once, and serves an application on it from `start` to `stop`.

    Args:
        application: Answers the requests.
        ip: Address to listen on.
        port: Port to listen on.
        setting: The flag with which the operator chooses another port.
        limits: Limits on connections.
        refusals: Receives refused connections.
        grace_s: Seconds that unfinished requests have once it stops; less than `LIMIT_S`.

    Attributes:
        url: Its address.

    Raises:
        SetupError: The port cannot be used.
    """

    def __init__(
        self,
        application: App,
        *,
        ip: str,
        port: int,
        setting: str,
        limits: ConnectionLimits,
        refusals: RefusalLog,
        grace_s: int,
    ) -> None:
        self.url = f"http://{f'[{ip}]' if ':' in ip else ip}:{port}"
        self._setting = setting
        self._socket = bound_socket(ip, port, setting=setting)
        self._server = LimitedServer(
            uvicorn.Config(
                application,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=grace_s,
            ),
            limits,
            refusals,
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts to listen and returns once the server does.

        Raises:
            SetupError: It did not start in time.
        """
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        limit = time.monotonic() + LIMIT_S
        while not self._server.started:
            failed = self._serving.done()
            if failed or time.monotonic() > limit:
                error = self._serving.exception() if failed else None
                raise SetupError(
                    f"no server listens on {self.url}: {error or 'it took too long to start'}",
                    fix=f"try another {self._setting}",
                ) from error
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Sends the answers that are ready within `grace_s`, and stops listening."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=LIMIT_S)
        self._socket.close()
