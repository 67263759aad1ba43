"""What the simulation found, as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from protocol.errors import SetupError

Row = dict[str, Any]

_COLOURS = {
    "no guard": "#bbbbbb",
    "fixed queue": "#c08a3e",
    "version 0.1.0": "#b5484a",
    "guard": "#2c6fbb",
    "perfect": "#3a9d5d",
}


def plot(rows: Sequence[Row], trade_off: Sequence[Row], folder: Path) -> None:
    """Writes `guard-served.png` and `guard-trade-off.png`.

    Args:
        rows: As `running.run` returns them.
        trade_off: The guard on the slow card at one load, at different margins.
        folder: Where the files go; it is made.

    Raises:
        SetupError: The folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _served(rows, folder / "guard-served.png")
        _trade_off(trade_off, folder / "guard-trade-off.png")
    except OSError as error:
        raise SetupError(
            f"the plots cannot be written to {folder}: {error.strerror or error}",
            fix="name a writable folder with --plots",
        ) from error


def _served(rows: Sequence[Row], file: Path) -> None:
    """Share of all requests answered in time over the load: a panel per card and scenario."""
    cards = list(dict.fromkeys(row["card"] for row in rows))
    scenarios = list(dict.fromkeys(row["scenario"] for row in rows))
    figure, axes = plt.subplots(
        len(scenarios),
        len(cards),
        figsize=(3.6 * len(cards), 1.9 * len(scenarios)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, scenario in zip(axes, scenarios, strict=True):
        for panel, card in zip(line, cards, strict=True):
            for policy, colour in _COLOURS.items():
                found = [
                    (row["load"], row["on_time"] / max(1, row["asked"]))
                    for row in rows
                    if (row["card"], row["scenario"], row["policy"]) == (card, scenario, policy)
                ]
                panel.plot(*zip(*found, strict=True), color=colour, marker=".", label=policy)
            panel.set_title(f"{card}: {scenario}", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.3)
    figure.supxlabel("load, times the capacity at the best rung", fontsize=9)
    figure.supylabel("share of all requests answered in time", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0.02, 0.01, 1.0, 0.98))
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _trade_off(rows: Sequence[Row], file: Path) -> None:
    """On-time share against wasted share, one curve per scenario, a point per margin."""
    figure, panel = plt.subplots(figsize=(6.4, 4.2))
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        points = [row for row in rows if row["scenario"] == scenario]
        wasted = [100 * row["wasted_share"] for row in points]
        served = [100 * row["on_time_of_perfect"] for row in points]
        (line,) = panel.plot(wasted, served, marker="o", markersize=4, label=scenario)
        for row, x, y in zip(points, wasted, served, strict=True):
            panel.annotate(f"{row['caution']:g}", (x, y), fontsize=7, color=line.get_color())
    panel.set_xlabel("share of the GPU's seconds spent on requests that were not on time, %")
    panel.set_ylabel("on time, % of perfect")
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    plt.close(figure)
