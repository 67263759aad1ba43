"""The HTTP transport: a form in, a PLY file out, for programs on this machine or with a key."""

import asyncio
import json
import math
import time
from collections.abc import Mapping, Sequence

import uvicorn
from loguru import logger
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from miner.life import State
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.body_limit import BodyLimit
from miner.transports.connection_book import ConnectionLimits
from miner.transports.connections import ClientConnections, when_sent, while_connected
from miner.transports.failures import ServerErrors
from miner.transports.http.access import ApiKey, OwnPages, OwnPagesOnly, check_exposure, check_hosts
from miner.transports.http.forms import FormReader, max_body_bytes
from miner.transports.limited_server import LimitedServer
from miner.transports.refusals import RETRY_AFTER_S, Refusal, RefusalLog
from miner.transports.sockets import bound_socket
from protocol import ply
from protocol.errors import SetupError, TaskError
from protocol.gaussians import GaussianCloud
from protocol.orientation import UpAxis, turn_up_axis
from protocol.tasks import TaskLimits, log_safe

NAME = "http"
CALLER = Caller("local")
"""The caller of every request over HTTP, where requests are not signed."""

START_LIMIT_S = 10.0
BODY_TIME_LIMIT_S = 20.0
CONNECTION_LIMITS = ConnectionLimits(waiting=512, requests=96, requests_per_address=64)
_STATUS = {"dropped": 503, "rejected": 422, "failed": 500}


class HttpTransport:
    """Serves `POST /generate/`, `POST /generate` and `GET /health` in the service's event loop.

    Both paths take a form or JSON with `prompt`, or the file `prompt_image_file`; either with a
    `seed` and a `task_id`.

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
        limits: Limits on tasks.
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
        limits: TaskLimits | None = None,
        connection_limits: ConnectionLimits = CONNECTION_LIMITS,
    ) -> None:
        check_exposure(ip, api_key, allow_open=allow_open)
        check_hosts(hosts)
        self._service = service
        self._api_key = None if api_key is None else ApiKey(api_key)
        self._own_pages = OwnPages(ip, hosts)
        self._up_axis = up_axis
        self._limits = limits or TaskLimits()
        self._refusals = RefusalLog(score_log, NAME, time.monotonic)
        self._forms = FormReader(
            on_full=lambda reason: self._refusals.note(Refusal("overloaded", reason), warn=True)
        )
        self._problems = score_log.problems
        self._socket = bound_socket(ip, port, setting="--http.port")
        self.url = f"http://{f'[{ip}]' if ':' in ip else ip}:{port}"
        self._server = LimitedServer(
            uvicorn.Config(
                self._application(),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=5,
            ),
            connection_limits,
            self._refusals,
        )
        self._serving: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Starts to listen and returns once the server does.

        Raises:
            SetupError: It did not start in time.
        """
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        limit = time.monotonic() + START_LIMIT_S
        while not self._server.started:
            failed = self._serving.done()
            if failed or time.monotonic() > limit:
                error = self._serving.exception() if failed else None
                raise SetupError(
                    f"the HTTP server does not listen on {self.url}: {error or 'it took too long'}",
                    fix="try another --http.port",
                ) from error
            await asyncio.sleep(0.01)
        logger.info("listening on {} ({} key)", self.url, "with a" if self._api_key else "no")

    async def close(self) -> None:
        """Sends the answers that are ready and stops listening."""
        self._server.should_exit = True
        if self._serving is not None:
            await asyncio.wait({self._serving}, timeout=START_LIMIT_S)
        self._socket.close()
        self._refusals.flush()

    def _application(self) -> Starlette:
        application = Starlette(
            routes=[
                Route("/generate", self._generate, methods=["POST"]),
                Route("/generate/", self._generate, methods=["POST"]),
                Route("/health", self._health, methods=["GET"]),
            ],
            exception_handlers={HTTPException: _on_http_exception},
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

    async def _health(self, request: HttpRequest) -> Response:
        state = self._service.state
        if state is State.READY:
            problems = self._problems.sentences
            return _json(200, {"status": "healthy", **({"problems": problems} if problems else {})})
        return _json(503, {"status": str(state)}, {"Retry-After": str(RETRY_AFTER_S)})

    async def _generate(self, request: HttpRequest) -> Response:
        received_at = time.monotonic()
        if self._api_key is not None and not self._api_key.is_in(request.headers):
            self._refusals.note(Refusal("bad_api_key", "the API key is missing or wrong"))
            return _json(
                401,
                {"message": "send the API key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"},
                {"WWW-Authenticate": "Bearer"},
            )
        form = await self._forms.read(request)
        task_id = form.task_id()
        try:
            task = await asyncio.to_thread(form.task, task_id, self._limits)
        except TaskError as error:
            answer = self._service.reject(
                task_id=task_id,
                caller=CALLER,
                transport=NAME,
                received_at=received_at,
                reason=str(error),
            )
        else:
            del form  # Megabytes, which the task holds as well.
            answer = await while_connected(
                self._service.handle(Request(task, CALLER, NAME, received_at))
            )
        if answer.cloud is None:
            return _without_asset(answer)
        answered_at, size = time.monotonic(), len(answer.asset)
        when_sent(lambda: self._service.delivered(NAME, size, time.monotonic() - answered_at))
        body = await asyncio.to_thread(_encode, answer.cloud, self._up_axis)
        total_s = time.monotonic() - received_at
        return Response(
            body,
            media_type="application/octet-stream",
            headers={
                "X-Task-Id": log_safe(task_id),
                "Server-Timing": _server_timing({**answer.timings, "total": total_s}),
            },
        )


def _encode(cloud: GaussianCloud, up_axis: UpAxis) -> bytes:
    return ply.encode(turn_up_axis(cloud, up_axis))


def _without_asset(answer: Answer) -> Response:
    status = _STATUS[answer.outcome]
    content = {
        "message": answer.reason,
        "task_id": answer.task_id,
        "outcome": answer.outcome,
        "reason_code": answer.reason_code,
        "stage": answer.stage,
        "predicted_s": answer.predicted_s,
        "budget_s": answer.budget_s,
    }
    headers = {"X-Task-Id": log_safe(answer.task_id)}
    if status == 503:
        headers["Retry-After"] = str(_retry_after(answer))
    return _json(
        status, {name: value for name, value in content.items() if value is not None}, headers
    )


def _retry_after(answer: Answer) -> int:
    """Seconds, rounded up, after which the present queue would have left this request its time.

    That is known only for a request that was predicted late on arrival. Others (the miner loads or
    drains, a stage hangs, a step took longer than predicted) get a fixed time.
    """
    if answer.predicted_s is None or answer.budget_s is None:
        return RETRY_AFTER_S
    late_s = answer.predicted_s - answer.budget_s
    return math.ceil(late_s) if late_s > 0.0 else RETRY_AFTER_S


def _server_timing(timings: Mapping[str, float]) -> str:
    """Formats seconds by stage as a `Server-Timing` header (W3C), in milliseconds."""
    return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in timings.items())


def _json(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")


async def _on_http_exception(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"message": error.detail}, error.headers)
