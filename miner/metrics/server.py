"""The port for probes and scrapers: `/health`, `/ready`, `/status` and `/metrics`."""

import gzip
import json
import re
import time
from collections.abc import Callable, Mapping

from loguru import logger
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from miner.life import State
from miner.metrics.gpu import GpuMemory
from miner.metrics.labels import METRICS
from miner.score.log import ScoreLog
from miner.transports.connection_book import ConnectionLimits
from miner.transports.failures import ServerErrors
from miner.transports.http.access import OwnPages, OwnPagesOnly, is_loopback
from miner.transports.refusals import RETRY_AFTER_S, RefusalLog
from miner.transports.served_port import ServedPort

CONNECTION_LIMITS = ConnectionLimits(
    waiting=64, waiting_per_address=32, requests=16, requests_per_address=8, write_s=20.0
)
KEEP_S = 1.0
"""Seconds for which an answer that takes milliseconds is sent again: whoever asks a thousand times
a second must not hold the event loop, in which the miner answers validators."""

_OPENMETRICS = "application/openmetrics-text"
_FORMATS: Mapping[bool, tuple[Callable[[CollectorRegistry], bytes], str]] = {
    True: (openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST),
    False: (generate_latest, CONTENT_TYPE_PLAIN_0_0_4),
}
_NEVER = re.compile(r"q\s*=\s*0(\.0*)?")
_NOT_STORED = {"Cache-Control": "no-store"}


class MetricsServer:
    """Serves probes and scrapers in the service's event loop.

    Not in a thread of its own: that would answer "alive" while the event loop, and with it the
    miner, hangs.

    Args:
        registry: What `/metrics` shows.
        score_log: Receives `refused` lines.
        state: Returns the state of the service.
        status: Returns what `/status` shows, as JSON has it.
        gpu_memory: Read before every exposition.
        ip: Address to listen on.
        port: Port to listen on.
        keep_s: See `KEEP_S`.
        clock: Monotonic clock, in seconds.

    Raises:
        SetupError: The port cannot be used.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        score_log: ScoreLog,
        *,
        state: Callable[[], State],
        status: Callable[[], Mapping[str, object]],
        gpu_memory: GpuMemory,
        ip: str,
        port: int,
        keep_s: float = KEEP_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._state = state
        self._status = status
        self._gpu_memory = gpu_memory
        self._keep_s = keep_s
        self._clock = clock
        self._bodies: dict[object, tuple[float, bytes]] = {}
        self._exposed = not is_loopback(ip)
        self._own_pages = OwnPages(ip, setting=None)
        self._refusals = RefusalLog(score_log, METRICS, clock)
        self._port = ServedPort(
            self._application(),
            ip=ip,
            port=port,
            setting="--metrics.port",
            limits=CONNECTION_LIMITS,
            refusals=self._refusals,
            grace_s=2,
        )

    @property
    def url(self) -> str:
        """Its address."""
        return self._port.url

    async def serve(self) -> None:
        """Starts to listen and returns once the server does.

        Raises:
            SetupError: It did not start in time.
        """
        await self._port.start()
        logger.info("metrics and health on {}", self.url)
        if self._exposed:
            logger.warning(
                "anyone who can reach {} sees the hotkey, versions, preset, state, problems "
                "with paths of files, and how many requests take how long; let a firewall admit "
                "the scraper alone",
                self.url,
            )

    async def close(self) -> None:
        """Stops listening; call it last, so that probes see the miner drain."""
        await self._port.stop()
        self._refusals.flush()

    def _application(self) -> Starlette:
        application = Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/ready", self._ready, methods=["GET"]),
                Route("/status", self._describe, methods=["GET"]),
                Route("/metrics", self._expose, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _on_http_exception},
        )
        application.router.redirect_slashes = False
        application.add_middleware(
            OwnPagesOnly, own_pages=self._own_pages, on_refusal=self._refusals.note
        )
        application.add_middleware(ServerErrors, refusals=self._refusals)
        return application

    async def _health(self, request: Request) -> Response:
        return _json(200, {"status": "alive"})

    async def _ready(self, request: Request) -> Response:
        state = self._state()
        if state is State.READY:
            return _json(200, {"state": state})
        return _json(503, {"state": state}, {"Retry-After": str(RETRY_AFTER_S)})

    async def _describe(self, request: Request) -> Response:
        body = self._kept("status", lambda: json.dumps(self._status()).encode())
        return Response(body, 200, _NOT_STORED, "application/json")

    async def _expose(self, request: Request) -> Response:
        # Not the library's choose_encoder: it fails on versions such as "1.x".
        wants_open = _OPENMETRICS in ",".join(request.headers.getlist("accept")).lower()
        headers = {**_NOT_STORED, "Vary": "Accept, Accept-Encoding"}
        if not self._is_kept(wants_open):
            await self._gpu_memory.refresh()
        encode, kind = _FORMATS[wants_open]
        body = self._kept(wants_open, lambda: encode(self._registry))
        if _takes_gzip(",".join(request.headers.getlist("accept-encoding"))):
            plain = body
            body = self._kept((wants_open, "gzip"), lambda: gzip.compress(plain, 5))
            headers["Content-Encoding"] = "gzip"
        return Response(body, 200, {**headers, "Content-Type": kind})

    def _kept(self, key: object, make: Callable[[], bytes]) -> bytes:
        """Returns what was made within the last `keep_s`, or makes it."""
        if not self._is_kept(key):
            self._bodies[key] = self._clock(), make()
        return self._bodies[key][1]

    def _is_kept(self, key: object) -> bool:
        made_at = self._bodies[key][0] if key in self._bodies else float("-inf")
        return self._clock() - made_at < self._keep_s


def _takes_gzip(accept_encoding: str) -> bool:
    """Whether gzip is named with a weight above 0; the library's `gzip_accepted` overlooks it."""
    for each in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in each.split(";"))
        if coding == "gzip":
            return not any(_NEVER.fullmatch(parameter) for parameter in parameters)
    return False


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    headers = {**_NOT_STORED, **(headers or {})}
    return Response(json.dumps(content), status, headers, "application/json")


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"message": error.detail}, error.headers)
