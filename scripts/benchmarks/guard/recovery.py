"""How soon predictions are right again after the machine's speed has changed."""

from dataclasses import replace
from typing import Any

from miner.request import Request
from miner.scheduling.estimates import Estimates
from miner.scheduling.scheduler import Scheduler
from protocol.tasks import TextTask
from scripts.benchmarks.guard.policies import make_scheduler
from scripts.benchmarks.guard.scenarios import SCENARIOS, Truth, arrivals, card
from scripts.benchmarks.guard.simulation import ENGINE, Clock, run_scheduler

RIGHT = 0.15
"""A prediction counts as right within this share of the truth."""

CHANGES = (
    ("gpu80", 2.0, None),
    ("gpu80", 2.0, 30.0),
    ("gpu80", 5.0, 3.0),
    ("slow", 2.0, None),
    ("slow", 2.0, 300.0),
    ("slow", 5.0, 3.0),
)
"""Card, factor on every stage's seconds, and how long it lasts: half speed, restored, a spike."""

_LOAD, _REQUESTS = 0.7, 400


def recover(card_name: str, slowdown: float, lasts_s: float | None) -> dict[str, Any]:
    """Slows the machine down half way through a run, and watches the prediction of a text task.

    Args:
        card_name: A name in `scenarios.CARDS`.
        slowdown: Factor on every stage's seconds.
        lasts_s: Seconds after which the speed is restored; to the end of the run when None.

    Returns:
        `requests` and `seconds` from the last change of speed until the mean prediction is within
        `RIGHT` of the truth and stays there.
    """
    machine = card(card_name)
    change_at = 0.5 * _REQUESTS / (_LOAD * machine.capacity(0.8))
    restored_at = None if lasts_s is None else change_at + lasts_s

    def speed(now: float) -> float:
        slow = now >= change_at and (restored_at is None or now < restored_at)
        return slowdown if slow else 1.0

    scenario = replace(SCENARIOS[0], speed=speed)
    last_change = change_at if restored_at is None else restored_at
    trial = next(arrivals(scenario, machine, _LOAD, 1, 1))
    trial = replace(trial, task=TextTask(id="trial", prompt="p"))
    truth = sum(machine.medians[step.cost_key] for step in machine.steps(trial, machine.ladder[0]))
    finished = 0
    wrong_at, wrong_count = last_change, 0
    estimates: list[Estimates] = []

    def make(clock: Clock) -> Scheduler:
        learned = Estimates(clock)
        learned.set_prior(ENGINE, machine.medians)
        estimates.append(learned)
        return make_scheduler(machine, clock, learned)

    def watch(scheduler: Scheduler, request: Request, now: float) -> None:
        nonlocal finished, wrong_at, wrong_count
        if now < last_change:
            return
        finished += 1
        steps = machine.steps(trial, machine.ladder[0])
        predicted = sum(estimates[0].cost(ENGINE, step.cost_key).mean for step in steps)
        if abs(predicted / (truth * speed(now)) - 1.0) > RIGHT:
            wrong_at, wrong_count = now, finished

    asked = arrivals(scenario, machine, _LOAD, _REQUESTS, 1)
    run_scheduler(make, asked, machine.lanes, Truth(scenario, machine, 1), watch=watch)
    return {
        "card": card_name,
        "slowdown": slowdown,
        "lasts_s": lasts_s,
        "requests": wrong_count,
        "seconds": wrong_at - last_change,
    }
