"""The HTTP transport: the API, its document and the page, on this machine or with a key."""

import time
from collections.abc import Sequence

from loguru import logger
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from miner.logs import program_version
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.body_limit import BodyLimit
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections
from miner.transports.failures import ServerErrors
from miner.transports.http.access import ApiKey, OwnPages, OwnPagesOnly, check_exposure, check_hosts
from miner.transports.http.files import FORMATS, FileMaker, files_of, why_not
from miner.transports.http.forms import max_body_bytes
from miner.transports.http.generate import Generate
from miner.transports.http.intake import NAME, Intake
from miner.transports.http.job_store import JobLimits, JobStore
from miner.transports.http.jobs import Jobs
from miner.transports.http.openapi import document
from miner.transports.http.operations import Handler, routes_of
from miner.transports.http.reference import reference_routes
from miner.transports.http.replies import json_reply, on_http_exception
from miner.transports.http.status import About, StatusPages
from miner.transports.refusals import Refusal, RefusalLog
from miner.transports.served_port import ServedPort
from miner.web import web_routes
from protocol.orientation import UpAxis
from protocol.tasks import TaskLimits

BODY_TIME_LIMIT_S = 20.0
CONNECTION_LIMITS = ConnectionLimits(waiting=512, requests=96, requests_per_address=64)


class HttpTransport:
    """Serves the API of `operations.py`, its document and the page in the service's event loop.

    Args:
        service: Answers requests, in the event loop that calls `serve`.
        score_log: Receives `refused` lines.
        ip: Address to listen on.
        port: Port to listen on.
        api_key: The key that callers must send, as `Authorization: Bearer KEY` or
            `X-API-Key: KEY`. Without one, web pages other than the server's own are refused.
        allow_open: Listen beyond this machine without a key.
        hosts: Names by which the server may be addressed, beside this machine's.
        up_axis: Up axis of the PLY files.
        about: What the miner says of itself.
        candidates: Of a caller who does not say how many; None leaves it to the service.
        send_gated: Whether objects that the gate is against are sent all the same.
        limits: Limits on tasks.
        job_limits: How many jobs run and are kept.
        connection_limits: Limits on connections.

    Raises:
        SetupError: The port cannot be used, it would be open to the network without a key, or
            `hosts` has something else than host names.
    """

    name = NAME

    def __init__(
        self,
        service: MinerService,
        score_log: ScoreLog,
        *,
        ip: str,
        port: int,
        api_key: str | None = None,
        allow_open: bool = False,
        hosts: Sequence[str] = (),
        up_axis: UpAxis = "+y",
        about: About | None = None,
        candidates: int | None = None,
        send_gated: bool = True,
        limits: TaskLimits | None = None,
        job_limits: JobLimits | None = None,
        connection_limits: ConnectionLimits = CONNECTION_LIMITS,
    ) -> None:
        check_exposure(ip, api_key, allow_open=allow_open)
        check_hosts(hosts)
        self._api_key = None if api_key is None else ApiKey(api_key)
        self._own_pages = OwnPages(ip, hosts)
        self._limits = limits or TaskLimits()
        self._refusals = RefusalLog(score_log, NAME, time.monotonic)
        self._files = FileMaker(up_axis)
        self._intake = intake = Intake(
            service,
            self._limits,
            lambda reason: self._refusals.note(Refusal("overloaded", reason), warn=True),
            candidates=candidates,
        )
        self._generate = Generate(service, intake, self._files, send_gated=send_gated)
        store = JobStore(
            job_limits or JobLimits(),
            time.monotonic,
            send_gated=send_gated,
            files=files_of(service.outputs),
        )
        self._jobs = Jobs(service, store, intake, self._files, self._refusals)
        unable = {why for name in FORMATS if (why := why_not(service, name)) is not None}
        self._document = document(
            version=program_version(),
            with_key=api_key is not None,
            outputs=service.outputs,
            note="".join(f"{why[0].upper()}{why[1:]}.\n" for why in sorted(unable)),
        )
        self._status = StatusPages(service, score_log.problems, about or About())
        self._port = ServedPort(
            self._application(),
            ip=ip,
            port=port,
            setting="--http.port",
            limits=connection_limits,
            refusals=self._refusals,
            grace_s=5,
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
        logger.info("listening on {} ({} key)", self.url, "with a" if self._api_key else "no")

    async def close(self) -> None:
        """Sends the answers that are ready and stops listening."""
        await self._jobs.close()
        await self._port.stop()
        self._files.close()
        self._refusals.flush()

    def _application(self) -> Starlette:
        handlers: dict[str, Handler] = {
            "generate": self._generate.generate,
            "create": self._jobs.create,
            "show": self._jobs.show,
            "remove": self._jobs.remove,
            "events": self._jobs.events,
            "file": self._jobs.file,
            "status": self._status.status,
            "health": self._status.health,
        }

        async def openapi(http_request: HttpRequest) -> Response:
            return json_reply(200, self._document)

        application = Starlette(
            routes=[
                *routes_of(handlers, self._with_key),
                Route("/openapi.json", openapi, methods=["GET"]),
                *reference_routes(),
                *web_routes(),
            ],
            exception_handlers={HTTPException: on_http_exception},
        )
        application.router.redirect_slashes = False
        application.add_middleware(
            BodyLimit,
            max_bytes=max_body_bytes(self._limits),
            time_limit_s=BODY_TIME_LIMIT_S,
            on_refusal=self._refusals.note,
        )
        if self._api_key is None:
            application.add_middleware(
                OwnPagesOnly, own_pages=self._own_pages, on_refusal=self._refusals.note
            )
        application.add_middleware(ClientConnections)
        # What is added last is outermost.
        application.add_middleware(ServerErrors, refusals=self._refusals)
        return application

    def _with_key(self, handler: Handler) -> Handler:
        """Makes a handler ask for the API key, if there is one."""
        key = self._api_key
        if key is None:
            return handler

        async def checked(http_request: HttpRequest) -> Response:
            if key.is_in(http_request.headers):
                return await handler(http_request)
            self._refusals.note(Refusal("bad_api_key", "the API key is missing or wrong"))
            return json_reply(
                401,
                {"message": "send the API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"},
                {"WWW-Authenticate": "Bearer"},
            )

        return checked
