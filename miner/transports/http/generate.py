"""`POST /generate`: a task in, a file out."""

import time
from collections.abc import Mapping

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from miner.request import Answer
from miner.service import MinerService
from miner.transports.connections import when_sent, while_connected
from miner.transports.http.files import FORMATS, FileMaker
from miner.transports.http.intake import NAME, Intake
from miner.transports.http.replies import answer_headers, without_object
from protocol.tasks import log_safe


class Generate:
    """Answers with the file of an object, once it is made.

    Args:
        service: Makes it.
        intake: Reads tasks.
        files: Makes the file.
        send_gated: Whether an object that the gate is against is sent all the same.
    """

    def __init__(
        self, service: MinerService, intake: Intake, files: FileMaker, *, send_gated: bool
    ) -> None:
        self._service = service
        self._intake = intake
        self._files = files
        self._send_gated = send_gated

    async def generate(self, http_request: HttpRequest) -> Response:
        """Answers `POST /generate`."""
        asked = await self._intake.read(http_request)
        if isinstance(asked, Response):
            return asked
        request, name = asked.request, asked.format
        answer = await while_connected(self._service.handle(request))
        if answer.outcome != "completed" or (answer.gated and not self._send_gated):
            return without_object(answer)
        if name in ("ply", "spz"):  # Others take longer to make than to deliver.
            answered_at, size = time.monotonic(), len(answer.asset)
            when_sent(lambda: self._service.delivered(NAME, size, time.monotonic() - answered_at))
        body = await while_connected(self._files.file(name, answer))
        total_s = time.monotonic() - request.received_at
        headers = {
            "X-Task-Id": log_safe(request.task.id),
            "Server-Timing": _server_timing({**_seconds(answer), "total": total_s}),
            **answer_headers(answer),
        }
        return Response(body, 200, headers, FORMATS[name].media_type)


def _seconds(answer: Answer) -> dict[str, float]:
    """Seconds by stage of the first object, and those of further candidates."""
    further = {"candidates": answer.candidates_s} if answer.candidates > 1 else {}
    return {**answer.timings, **further}


def _server_timing(timings: Mapping[str, float]) -> str:
    """Formats seconds by stage as a `Server-Timing` header (W3C), in milliseconds."""
    return ", ".join(f"{stage};dur={1000 * seconds:.1f}" for stage, seconds in timings.items())
