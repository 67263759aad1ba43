"""Runs every policy through every world: rows as JSON, tables, and a plot."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from protocol.errors import SetupError
from scripts.benchmarks.candidates.simulation import DEFAULT, POLICIES, Policy, World, simulate
from scripts.benchmarks.figures import write_figures

Row = dict[str, Any]

SEEDS = 20
PASS_RATES = (0.3, 0.42, 0.6)
CORRELATIONS = (0.0, 0.5)
ERRORS = (0.0, 0.05, 0.1)
PLOTTED_ERRORS = (0.2, 0.3)
"""Beyond `ERRORS`, for the plot alone."""

OTHERS: tuple[tuple[str, World, str], ...] = (
    ("as in the first table", World(), "gpu80"),
    ("spread 0.08", World(spread=0.08), "gpu80"),
    ("spread 0.2", World(spread=0.2), "gpu80"),
    ("1 of 5 is an image task", World(image_share=0.2), "gpu80"),
    ("4 validators", World(validators=4), "gpu80"),
    ("slow card", World(), "slow"),
    ("scorer says 0.1 too much", World(bias=0.1), "gpu80"),
    ("scorer says 0.1 too little", World(bias=-0.1), "gpu80"),
    ("0.1 too much, 24 hours", World(bias=0.1, hours=24.0), "gpu80"),
    ("0.1 too little, 24 hours", World(bias=-0.1, hours=24.0), "gpu80"),
)
"""What else could be so: a name, the world and the card."""


def run(
    *, seeds: int = SEEDS, plots: Path | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Simulates all policies and prints two tables.

    Args:
        seeds: Runs of each policy in each world.
        plots: Folder for the PNG plot; needs matplotlib.
        out: JSON file for what is returned.

    Returns:
        `rows`, one per world of the grid and policy, and `others`, one per world of
        `OTHERS` and policy: see `row`.

    Raises:
        SetupError: `out` or `plots` cannot be written, or matplotlib is missing.
    """
    if plots is not None:
        try:
            import matplotlib.pyplot  # noqa: F401
        except ImportError as error:
            raise SetupError(
                "plots need matplotlib", fix="pip install matplotlib, or leave out --plots"
            ) from error
    errors = (*ERRORS, *PLOTTED_ERRORS) if plots is not None else ERRORS
    grid = [
        World(pass_rate=rate, correlation=correlation, error=error)
        for rate, correlation, error in product(PASS_RATES, CORRELATIONS, errors)
    ]
    jobs = [("", world, "gpu80", policy, seeds) for world in grid for policy in POLICIES]
    others = [(*other, policy, seeds) for other in OTHERS for policy in _policies(other[1])]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = list(tqdm(pool.map(_job, jobs + others), total=len(jobs + others), unit="world"))
    figures = {"rows": found[: len(jobs)], "others": found[len(jobs) :]}
    for rows in figures.values():
        _compare(rows)
    write_figures(out, figures)
    if plots is not None:
        from scripts.benchmarks.candidates import plotting

        plotting.plot(figures["rows"], plots)
    console = Console()
    console.print(table([row for row in figures["rows"] if row["error"] in ERRORS]))
    console.print(table(figures["others"]))
    return figures


def row(name: str, world: World, card_name: str, policy: Policy, seeds: int) -> Row:
    """Runs one policy through a world with several seeds: as many hours in each world.

    Returns:
        The world, `card`, `policy`, and over the seeds: `accepted` (mean results that validators
        accepted) with `spread_of_accepted` (standard deviation of a run), `refused`, `empty`,
        `candidates` (objects per task), `margin` (of the gate at the end) and `slowest_s` (the
        longest time from an assignment to the end of the validation).
    """
    seeds = max(1, round(seeds * World.hours / world.hours))
    runs = [simulate(world, policy, seed, card_name=card_name) for seed in range(seeds)]
    accepted = [run.accepted for run in runs]
    tasks = sum(run.accepted + run.refused + run.empty for run in runs)
    return {
        "name": name,
        **asdict(world),
        "card": card_name,
        "policy": policy.name,
        "seeds": seeds,
        "accepted": fmean(accepted),
        "spread_of_accepted": stdev(accepted) if seeds > 1 else 0.0,
        "refused": fmean(run.refused for run in runs),
        "empty": fmean(run.empty for run in runs),
        "probes": fmean(run.probes for run in runs),
        "candidates": sum(run.candidates for run in runs) / max(1, tasks),
        "margin": fmean(run.margin for run in runs),
        "slowest_s": max(run.slowest_s for run in runs),
    }


def table(rows: Sequence[Row]) -> Table:
    """Lays the rows out for a terminal: a line per world, a column per policy."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    shown = Table("world", *(f"{policy}" for policy in policies), title="accepted results")
    lines: dict[str, list[str]] = {}
    for each in rows:
        world = each["name"] or (
            f"pass {each['pass_rate']:g}, correlation {each['correlation']:g}, "
            f"error {each['error']:g}"
        )
        cell = f"{each['accepted']:.1f} ± {each['spread_of_accepted']:.1f}"
        if each["times_always"] is not None:
            cell += f" ({each['times_always']:.1f}x)"
        lines.setdefault(world, []).append(cell)
    for world, cells in lines.items():
        shown.add_row(world, *cells)
    return shown


def _compare(rows: Sequence[Row]) -> None:
    """Adds `times_always`: accepted results as a multiple of always submitting in that world."""
    fields = (*World.__dataclass_fields__, "card")
    always = {
        tuple(each[name] for name in fields): each["accepted"]
        for each in rows
        if each["policy"] == POLICIES[0].name
    }
    for each in rows:
        base = always[tuple(each[name] for name in fields)]
        first = each["policy"] == POLICIES[0].name
        each["times_always"] = None if first or not base else each["accepted"] / base


def _policies(world: World) -> tuple[Policy, ...]:
    """Returns what is run in a world; a day of 32 candidates would take minutes."""
    return (*POLICIES, DEFAULT) if world.hours <= World.hours else POLICIES


def _job(job: tuple[str, World, str, Policy, int]) -> Row:
    return row(*job)
