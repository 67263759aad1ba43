"""From a form or JSON to a request of the service."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from miner.request import Caller, Request
from miner.service import MinerService
from miner.transports.http.files import FORMATS, formats_of, why_not
from miner.transports.http.forms import FormReader
from miner.transports.http.models import FormatName
from miner.transports.http.replies import without_object
from protocol.errors import TaskError
from protocol.tasks import TaskLimits

NAME = "http"
CALLER = Caller("local")
"""The caller of every request over HTTP, where requests are not signed."""


@dataclass(frozen=True)
class Asked:
    """A task that can be handed to the service.

    Attributes:
        request: The request.
        format: The file that is asked for.
    """

    request: Request
    format: FormatName


class Intake:
    """Reads tasks.

    Args:
        service: Is told of tasks that cannot be used.
        limits: Limits on tasks.
        on_full: Called with the reason when a body finds no room.
        candidates: Of a caller who does not say how many; None leaves it to the service.
    """

    def __init__(
        self,
        service: MinerService,
        limits: TaskLimits,
        on_full: Callable[[str], object],
        *,
        candidates: int | None = None,
    ) -> None:
        self._candidates = candidates
        self._service = service
        self._formats = formats_of(service.outputs)
        self._limits = limits
        self._forms = FormReader(on_full=on_full)

    async def read(self, http_request: HttpRequest) -> Asked | Response:
        """Reads the body of a request; returns the answer to one whose task cannot be used.

        Raises:
            starlette.exceptions.HTTPException: The body cannot be read; see `FormReader.read`.
            starlette.requests.ClientDisconnect: The client left before it was complete.
        """
        received_at = time.monotonic()
        form = await self._forms.read(http_request)
        task_id = form.task_id()
        try:
            format_name, candidates = form.format(self._formats), form.candidates()
            if (why := why_not(self._service, format_name)) is not None:
                raise TaskError(f"format {format_name} cannot be made: {why}")
            task = await asyncio.to_thread(form.task, task_id, self._limits)
        except TaskError as error:
            answer = self._service.reject(
                task_id=task_id,
                caller=CALLER,
                transport=NAME,
                received_at=received_at,
                reason=str(error),
            )
            return without_object(answer)
        request = Request(
            task,
            CALLER,
            NAME,
            received_at,
            output=FORMATS[format_name].output,
            candidates=self._candidates if candidates is None else candidates,
        )
        return Asked(request, format_name)
