"""The scheduler on the levels of a card, without a machine."""

from generation.plan import Rung
from miner.request import Caller, Request
from miner.scheduling.estimates import Estimates
from miner.scheduling.scheduler import Scheduler
from protocol.tasks import TextTask
from scripts.benchmarks.guard.policies import make_scheduler
from scripts.benchmarks.guard.scenarios import Card
from scripts.benchmarks.guard.simulation import ENGINE
from tests.support.fakes import Clock


def scheduler_of(card: Card, clock: Clock) -> Scheduler:
    """One that expects of each step what the card takes."""
    estimates = Estimates(clock)
    estimates.set_prior(ENGINE, card.medians)
    return make_scheduler(card, clock, estimates)  # type: ignore[arg-type]  # Another clock.


def request(number: int, allowed_s: float | None = None) -> Request:
    """Each from a caller of its own, so that nobody's share is the limit."""
    task = TextTask(id=str(number), prompt="p")
    return Request(task, Caller(f"caller {number}"), "axon", Clock()(), allowed_s)


def gpu_seconds(card: Card, rung: Rung) -> float:
    """Of a text task at a level."""
    steps = card.steps(request(0), rung)
    return sum(card.medians[step.cost_key] for step in steps if step.lane == "gpu")
