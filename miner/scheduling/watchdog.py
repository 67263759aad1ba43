"""How long a step may run before its engine is suspected to hang, and what follows."""

from collections.abc import Iterable
from dataclasses import dataclass

from miner.request import ActiveRequest
from miner.scheduling.estimates import Cost

LIMIT_FACTOR = 8.0
LIMIT_FLOOR_S = 2.0
LIMIT_Z = 2.0
"""A step may run 8 x its predicted 97.5 %, and at least 2 s: a busy host stalls for that long."""

RECOVERY_S = 30.0
"""How long a suspect engine may take to come back before it counts as lost."""


def step_limit(cost: Cost) -> float:
    """Returns the seconds that a step of this cost may run."""
    return max(LIMIT_FLOOR_S, LIMIT_FACTOR * cost.quantile(LIMIT_Z))


@dataclass(frozen=True)
class Overrun:
    """A step past its limit.

    Attributes:
        active: The request that it belongs to.
        stage: The stage.
        ran_s: Seconds so far.
        limit_s: What it may take.
    """

    active: ActiveRequest
    stage: str
    ran_s: float
    limit_s: float

    @property
    def lost(self) -> bool:
        """Whether the time to come back is over as well."""
        return self.ran_s > self.limit_s + RECOVERY_S

    def __str__(self) -> str:
        return f"{self.stage} runs for {self.ran_s:.1f} s, its limit is {self.limit_s:.1f} s"


def overruns(requests: Iterable[ActiveRequest], now: float) -> list[Overrun]:
    """Returns the running steps that are past their limits."""
    past = []
    for active in requests:
        if active.step_since is None or not active.plan.limit:
            continue
        ran, limit = now - active.step_since, active.plan.limit[active.position]
        if ran > limit:
            stage = active.plan.steps[active.position].stage
            past.append(Overrun(active, stage, ran, limit))
    return past
