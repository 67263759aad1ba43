"""What the simulation found, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from protocol.errors import SetupError

Row = dict[str, Any]

_COLOURS = ("#9a9a9a", "#c08a3e", "#8fb8e0", "#2c6fbb", "#3a9d5d")
"""One for each policy."""


def plot(rows: Sequence[Row], folder: Path) -> None:
    """Writes `candidates-earned.png`: accepted results over the scorer's error.

    Args:
        rows: As `running.run` returns them.
        folder: Where the file goes; it is made.

    Raises:
        SetupError: The folder cannot be written.
    """
    rates = sorted({row["pass_rate"] for row in rows})
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    correlations = sorted({row["correlation"] for row in rows})
    figure, axes = plt.subplots(
        len(correlations),
        len(rates),
        figsize=(3.5 * len(rates), 2.6 * len(correlations)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for line, correlation in zip(axes, correlations, strict=True):
        for panel, rate in zip(line, rates, strict=True):
            for policy, colour in zip(policies, _COLOURS, strict=False):
                found = sorted(
                    (row["error"], row["accepted"], row["spread_of_accepted"])
                    for row in rows
                    if (row["pass_rate"], row["correlation"]) == (rate, correlation)
                    and row["policy"] == policy
                )
                errors, means, spreads = zip(*found, strict=True)
                panel.plot(errors, means, color=colour, marker=".", label=policy)
                low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
                high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
                panel.fill_between(errors, low, high, color=colour, alpha=0.15, linewidth=0)
            panel.set_title(f"pass rate {rate:g}, correlation {correlation:g}", fontsize=9)
            panel.set_ylim(0.0, 50.0)
            panel.tick_params(labelsize=8)
            panel.grid(alpha=0.3)
    figure.supxlabel("standard deviation of the scorer's error", fontsize=9)
    figure.supylabel("accepted results in four hours, one validator", fontsize=9)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0.01, 0.0, 1.0, 0.95))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "candidates-earned.png", dpi=80)
    except OSError as error:
        raise SetupError(
            f"the plot cannot be written to {folder}: {error.strerror or error}",
            fix="name a writable folder with --plots",
        ) from error
    finally:
        plt.close(figure)
