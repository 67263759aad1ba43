"""A request between its admission and its answer."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from generation.errors import GenerationEnded
from generation.pipeline import Generation
from miner.request import Request


@dataclass
class InHand:
    """An admitted request on its way through the stages.

    Attributes:
        request: The request.
        deadline: Monotonic seconds at which its budget is over.
        budget_s: Seconds that it has.
        predicted_s: Seconds predicted on arrival.
        work: The generation.
        gate_code: The guard's last word about it.
    """

    request: Request
    deadline: float
    budget_s: float
    predicted_s: float
    work: "asyncio.Task[Generation]"
    gate_code: str = "ok"

    @property
    def timings(self) -> Mapping[str, float]:
        """Stage times of a finished generation; a stopped one carries those of what it did."""
        if not self.work.done() or self.work.cancelled():
            return {}
        error = self.work.exception()
        if error is None:
            return self.work.result().timings
        return error.timings if isinstance(error, GenerationEnded) else {}
