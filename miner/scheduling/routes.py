"""The steps of requests, each route kept once: the guard times equal ones only once."""

from collections.abc import Sequence

from generation.plan import Part, Rung, Step
from miner.request import Request
from miner.scheduling.improving import RequestRoute

MAX_ROUTES = 256


class SharedRoutes:
    """Gives equal routes as one object; a `RequestRoute` itself.

    Args:
        ladder: Quality levels, best first.
        route: Makes the routes.
    """

    def __init__(self, ladder: Sequence[Rung], route: RequestRoute) -> None:
        self._ladder = tuple(ladder)
        self._route = route
        self._kept: dict[tuple[Step, ...], tuple[Step, ...]] = {}

    def __call__(
        self,
        request: Request,
        rung: Rung,
        part: Part,
        pictures: int = 1,
        engine: str | None = None,
    ) -> tuple[Step, ...]:
        """See `RequestRoute`."""
        if len(self._kept) > MAX_ROUTES:
            self._kept.clear()
        route = self._route(request, rung, part, pictures, engine)
        return self._kept.setdefault(route, route)

    def ladder_of(
        self, request: Request, engine: str | None = None
    ) -> tuple[tuple[Step, ...], ...]:
        """Returns the steps from the task to the end at every rung."""
        return tuple(self(request, rung, "whole", 1, engine) for rung in self._ladder)
