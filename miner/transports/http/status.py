"""`GET /health` and `GET /status`: what the miner does at the moment."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from miner.life import State
from miner.logs import program_version
from miner.problems import Problems
from miner.service import MinerService
from miner.snapshot import ServiceSnapshot
from miner.transports.http.files import formats_of
from miner.transports.http.models import MinerStatus, QualityLevel
from miner.transports.http.replies import json_reply
from miner.transports.refusals import RETRY_AFTER_S

KEEP_S = 0.5
"""Seconds for which a snapshot is shown again: with 300 requests, its forecast takes 5 ms, and
whoever asks all the time must not hold the event loop."""


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
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        service: MinerService,
        problems: Problems,
        about: About,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._problems = problems
        self._about = about
        self._clock = clock
        self._kept: tuple[float, ServiceSnapshot] | None = None

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
        now = self._snapshot()
        status = MinerStatus(
            state=now.state,
            preset=self._about.preset,
            knows=self._about.knows,
            version=program_version(),
            budget_s=self._about.budget_s,
            predicted_wait_s=now.predicted_wait_s,
            active=sum(now.active.values()),
            candidates=self._about.candidates,
            formats=formats_of(self._service.outputs),
            back_end=self._service.ladder[0].back_end,
            rungs=[
                QualityLevel(
                    name=rung.name,
                    steps=rung.steps,
                    size=rung.size,
                    lift_steps=rung.lift_steps,
                    gaussians=rung.gaussians,
                )
                for rung in self._service.ladder
            ],
        )
        return json_reply(200, status.model_dump(), {"Cache-Control": "no-store"})

    def _snapshot(self) -> ServiceSnapshot:
        """Returns the last snapshot while it is fresh and of the same state, else a new one."""
        now, kept = self._clock(), self._kept
        if kept is None or now - kept[0] >= KEEP_S or kept[1].state != str(self._service.state):
            self._kept = kept = now, self._service.snapshot()
        return kept[1]
