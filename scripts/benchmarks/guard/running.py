"""Runs every policy through every scenario: rows as JSON, a table, and plots."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from miner.scheduling.guard import Margins
from protocol.errors import SetupError
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.guard.policies import POLICIES, simulate
from scripts.benchmarks.guard.recovery import CHANGES, recover
from scripts.benchmarks.guard.scenarios import (
    CARDS,
    LOADS,
    SCENARIOS,
    WARM_UP,
    Card,
    Scenario,
    Truth,
    arrivals,
    card,
)
from scripts.benchmarks.guard.simulation import Outcome, Record

Row = dict[str, Any]

REQUESTS = 1500
TABLE_WIDTH = 124
CAUTIONS = (0.0, 0.5, 1.0, 1.645, 2.0, 2.5, 3.0)
TRADE_OFF_SCENARIOS = ("even, mixed deadlines", "uneven, mixed deadlines", "heavy tails", "spikes")
TRADE_OFF_LOAD = 1.5


def run(
    *,
    requests: int = REQUESTS,
    scenarios: Sequence[str] | None = None,
    cards: Sequence[str] | None = None,
    loads: Sequence[float] | None = None,
    seed: int = 1,
    plots: Path | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Simulates all policies and prints a table.

    Args:
        requests: How many arrive in each simulation; the first `WARM_UP` are not counted.
        scenarios: Names of `SCENARIOS`; all when None.
        cards: Names of `CARDS`; all when None.
        loads: Multiples of the capacity at the best rung; `LOADS` when None.
        seed: Of arrivals and noise.
        plots: Folder for PNG plots, the trade-off between wasted work and served requests among
            them, which is then simulated too; needs matplotlib.
        out: JSON file for what is returned.

    Returns:
        `rows`, `recovery` (see `recovery.recover`) and, with `plots`, `trade_off`. There is one row
        per card, scenario, load and policy: `asked`, `accepted`, `on_time`, `late` (the
        asset came after the limit), `stopped_half_way` (with `cut_off`: while a step ran),
        `dropped_waiting`, `wasted_share` (of the `gpu` lane's seconds, spent on accepted requests
        that were not on time), `callers` (the share of its requests that each got in time),
        `mean_rung`, `on_time_of_perfect`.

    Raises:
        SetupError: An unknown scenario or card.
    """
    names = {scenario.name: scenario for scenario in SCENARIOS}
    for name in scenarios or ():
        if name not in names:
            raise SetupError(
                f"there is no scenario {name!r}", fix=f"name one of {', '.join(names)}"
            )
    for name in cards or ():
        if name not in CARDS:
            cards_there = "; ".join(CARDS)
            raise SetupError(f"there is no card {name!r}", fix=f"name one of: {cards_there}")
    jobs = [
        (name, scenario, load, requests, seed)
        for name in cards or CARDS
        for scenario in scenarios or names
        for load in loads or LOADS
    ]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        figures: dict[str, Any] = {"rows": [], "recovery": list(pool.map(_recovery, CHANGES))}
        rows: list[Row] = figures["rows"]
        for of_job in tqdm(pool.map(_all_policies, jobs), total=len(jobs), unit="scenario"):
            rows += of_job
            _write(out, figures)
        if plots is not None:
            from scripts.benchmarks.guard import plotting

            sweep = [
                (caution, scenario, requests, seed)
                for scenario in TRADE_OFF_SCENARIOS
                for caution in CAUTIONS
            ]
            swept = tqdm(pool.map(_caution, sweep), total=len(sweep), unit="margin")
            figures["trade_off"] = list(swept)
            _write(out, figures)
            plotting.plot(rows, figures["trade_off"], plots)
    console = Console(width=max(Console().width, TABLE_WIDTH))
    console.print(table(rows))
    for change in figures["recovery"]:
        lasts = "for good" if change["lasts_s"] is None else f"for {change['lasts_s']:g} s"
        console.print(
            f"{change['card']}, seconds x {change['slowdown']:g} {lasts}: predictions "
            f"right again after {change['requests']} requests, {change['seconds']:.0f} s"
        )
    return figures


def row(scenario: Scenario, machine: Card, load: float, policy: str, outcome: Outcome) -> Row:
    """Counts what became of the requests that arrived after the warm-up."""
    counted = outcome.records[WARM_UP:]
    accepted = [record for record in counted if record.accepted]
    on_time = [record for record in accepted if record.on_time]
    used = sum(record.ran_s for record in counted)
    wasted = sum(record.ran_s for record in accepted if not record.on_time)
    return {
        "card": machine.name,
        "scenario": scenario.name,
        "load": load,
        "policy": policy,
        "asked": len(counted),
        "accepted": len(accepted),
        "on_time": len(on_time),
        "late": sum(record.late for record in accepted),
        "stopped_half_way": sum(
            (record.stopped and record.ran_s > 0) or record.cut_off for record in accepted
        ),
        "cut_off": sum(record.cut_off for record in accepted),
        "dropped_waiting": sum(record.stopped and record.ran_s == 0 for record in accepted),
        "wasted_share": wasted / used if used else 0.0,
        "callers": by_caller(counted),
        "mean_rung": sum(record.rung or 0 for record in on_time) / max(1, len(on_time)),
    }


def by_caller(records: Sequence[Record]) -> dict[str, float]:
    """Returns the share of its requests that each caller got in time."""
    asked = Counter(record.request.caller.hotkey for record in records)
    served = Counter(record.request.caller.hotkey for record in records if record.on_time)
    return {caller: served[caller] / count for caller, count in asked.items()}


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out for a terminal."""
    shown = Table("card", "scenario", "load", "policy")
    for heading in ("on time", "of perfect", "late", "half way", "wasted", "rung"):
        shown.add_column(heading, justify="right")
    for r in rows:
        shown.add_row(
            r["card"],
            r["scenario"],
            f"{r['load']:g}",
            r["policy"],
            f"{r['on_time']} / {r['asked']}",
            f"{100 * r['on_time_of_perfect']:.0f} %",
            f"{100 * r['late'] / max(1, r['accepted']):.1f} %",
            str(r["stopped_half_way"]),
            f"{100 * r['wasted_share']:.1f} %",
            f"{r['mean_rung']:.2f}",
        )
    return shown


def _all_policies(job: tuple[str, str, float, int, int]) -> list[Row]:
    card_name, scenario_name, load, requests, seed = job
    machine, scenario = card(card_name), _scenario(scenario_name)
    rows = [_simulated(policy, scenario, machine, load, requests, seed) for policy in POLICIES]
    perfect = next(r["on_time"] for r in rows if r["policy"] == "perfect")
    for r in rows:
        r["on_time_of_perfect"] = r["on_time"] / max(1, perfect)
    return rows


def _recovery(change: tuple[str, float, float | None]) -> Row:
    return recover(*change)


def _caution(job: tuple[float, str, int, int]) -> Row:
    """Simulates the guard on the slow card with all margins moved together."""
    caution, scenario_name, requests, seed = job
    usual = Margins()
    moved = caution - usual.admit
    margins = Margins(
        admit=caution,
        better=usual.better + moved,
        dispatch=usual.dispatch + moved,
        start=usual.start,
    )
    scenario, machine = _scenario(scenario_name), card("slow")
    ours = _simulated("guard", scenario, machine, TRADE_OFF_LOAD, requests, seed, margins=margins)
    perfect = _simulated("perfect", scenario, machine, TRADE_OFF_LOAD, requests, seed)
    return ours | {
        "caution": caution,
        "on_time_of_perfect": ours["on_time"] / max(1, perfect["on_time"]),
    }


def _simulated(
    policy: str,
    scenario: Scenario,
    machine: Card,
    load: float,
    requests: int,
    seed: int,
    *,
    margins: Margins | None = None,
) -> Row:
    asked = arrivals(scenario, machine, load, requests, seed)
    truth = Truth(scenario, machine, seed)
    outcome = simulate(policy, scenario, machine, asked, truth, margins=margins)
    return row(scenario, machine, load, policy, outcome)


def _scenario(name: str) -> Scenario:
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def _write(out: Path | None, figures: dict[str, Any]) -> None:
    write_figures(out, figures)
