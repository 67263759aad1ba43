"""`GET /health` and `GET /status`: what the miner does at the moment."""

from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from miner.life import State
from miner.logs import program_version
from miner.problems import Problems
from miner.service import MinerService
from miner.transports.http.files import FORMATS
from miner.transports.http.models import MinerStatus
from miner.transports.http.replies import json_reply
from miner.transports.refusals import RETRY_AFTER_S


@dataclass(frozen=True)
class About:
    """What a miner says of itself.

    Attributes:
        preset: Name of its preset.
        knows: What its networks know, where that is little.
        budget_s: Seconds from the receipt of a request to the arrival of its answer, at most.
        candidates: Pictures drawn for a text at most.
    """

    preset: str | None = None
    knows: str = ""
    budget_s: float | None = None
    candidates: int = 1


class StatusPages:
    """Answers what the miner does at the moment.

    Args:
        service: Is asked.
        problems: What is wrong without costing anybody an answer.
        about: What the miner says of itself.
    """

    def __init__(self, service: MinerService, problems: Problems, about: About) -> None:
        self._service = service
        self._problems = problems
        self._about = about

    async def health(self, http_request: HttpRequest) -> Response:
        """Answers `GET /health`."""
        state = self._service.state
        if state is State.READY:
            problems = self._problems.sentences
            return json_reply(
                200, {"status": "healthy", **({"problems": problems} if problems else {})}
            )
        return json_reply(503, {"status": str(state)}, {"Retry-After": str(RETRY_AFTER_S)})

    async def status(self, http_request: HttpRequest) -> Response:
        """Answers `GET /status`."""
        now = self._service.snapshot()
        status = MinerStatus(
            state=now.state,
            preset=self._about.preset,
            knows=self._about.knows,
            version=program_version(),
            budget_s=self._about.budget_s,
            predicted_wait_s=now.predicted_wait_s,
            active=sum(now.active.values()),
            candidates=self._about.candidates,
            formats=list(FORMATS),
        )
        return json_reply(200, status.model_dump(), {"Cache-Control": "no-store"})
