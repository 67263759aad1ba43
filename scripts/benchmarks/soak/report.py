"""What a soak has shown: the promises with their figures, and the process over time."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from protocol.errors import SetupError
from protocol.text import printable
from scripts.benchmarks.soak.callers import Asked
from scripts.benchmarks.soak.process import Sample

ON_TIME = 0.99
MEMORY_GROWTH = 0.05
Figures = dict[str, Any]


def figures_of(
    asked: Sequence[Asked],
    events: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    *,
    tracebacks: Sequence[str],
    hostile: Mapping[str, Any],
    faults: Sequence[tuple[float, str]],
    seconds: float,
    exit_status: int,
) -> Figures:
    """Counts what happened; seconds, 10**6 bytes and shares of 1."""
    answered = Counter(e.get("task_id") for e in events if e.get("event") == "answered")
    reached = [one for one in asked if one.status != 401 or not one.wrong_clock]
    counted = [one for one in asked if not one.wrong_clock]
    pieces = sum(count for _, _, count in hostile["answers"])
    return {
        "seconds": seconds,
        "good": {
            "asked": len(asked),
            "on_time_share": sum(one.on_time for one in counted) / max(1, len(counted)),
            "while_the_clock_was_wrong": len(asked) - len(counted),
            "without_an_answer": sum(one.status == 0 for one in asked),
            "median_s": statistics.median(one.taken_s for one in counted if one.on_time),
            "not_on_time": dict(
                Counter(f"{one.way}: {one.status} {one.code}" for one in asked if not one.on_time)
            ),
        },
        "lines": {
            "requests_without_one_line": sorted(
                one.task_id for one in reached if answered[one.task_id] != 1
            ),
            "events": dict(Counter(str(event.get("event")) for event in events)),
        },
        "hostile": {
            "pieces": pieces,
            "times_the_good": pieces / max(1, len(asked)),
            "silent_connections_median": hostile["silent_median"],
            "answers": hostile["answers"],
        },
        "memory_growth": _growth(samples),
        "descriptors": _ends([sample.descriptors for sample in samples]),
        "threads": _ends([sample.threads for sample in samples]),
        "samples": [sample.as_dict() for sample in samples],
        "faults": [list(fault) for fault in faults],
        "tracebacks": list(tracebacks),
        "exit_status": exit_status,
    }


def _ends(values: Sequence[int]) -> dict[str, float]:
    """Medians of the second and of the last tenth, and the extremes from then on."""
    tenth = max(1, len(values) // 10)
    early, late = values[tenth : 2 * tenth] or values, values[-tenth:]
    rest = values[tenth:] or values
    return {
        "early": statistics.median(early),
        "late": statistics.median(late),
        "least": min(rest),
        "most": max(rest),
    }


def _growth(samples: Sequence[Sample]) -> float:
    """Growth of the resident memory from the second tenth to the last."""
    tenth = max(1, len(samples) // 10)
    early = statistics.median(s.memory_mb for s in (samples[tenth : 2 * tenth] or samples))
    late = statistics.median(s.memory_mb for s in samples[-tenth:])
    return late / early - 1.0


def print_report(figures: Figures, console: Console) -> bool:
    """Prints the promises with their figures; returns whether all are kept."""
    good, lines, hostile = figures["good"], figures["lines"], figures["hostile"]
    odd, growth = lines["requests_without_one_line"], figures["memory_growth"]
    descriptors, threads = figures["descriptors"], figures["threads"]
    exceptions = figures["tracebacks"]
    rows = (
        ("good requests on time", f"{good['on_time_share']:.2%}", good["on_time_share"] >= ON_TIME),
        ("good requests without an answer", str(good["without_an_answer"]), None),
        ("good requests without exactly one line", str(len(odd)), not odd),
        ("memory growth", f"{growth:+.1%}", growth < MEMORY_GROWTH),
        ("descriptors, early to late", _arrow(descriptors), None),
        ("threads, early to late", _arrow(threads), threads["late"] <= threads["early"] + 2),
        (
            "exceptions, but for the injected",
            str(len(figures["tracebacks"])),
            not figures["tracebacks"],
        ),
        ("exit status", str(figures["exit_status"]), figures["exit_status"] == 0),
    )
    table = Table(title=f"{figures['seconds'] / 60:.0f} minutes")
    for column in ("promise", "measured", "kept"):
        table.add_column(column)
    for name, measured, kept in rows:
        table.add_row(name, measured, {True: "yes", False: "NO", None: ""}[kept])
    console.print(table)
    console.print(
        f"{good['asked']} good requests, {good['median_s']:.2f} s in the median; "
        f"{good['while_the_clock_was_wrong']} while the miner's clock was an hour wrong, which are "
        f"not counted. {hostile['pieces']} hostile ones, {hostile['times_the_good']:.1f} times as "
        f"many, and {hostile['silent_connections_median']} silent connections in the median."
    )
    for what, count in sorted(good["not_on_time"].items()):
        console.print(f"not on time: {count} x {printable(what)}", markup=False)
    for traceback in exceptions[:10]:
        console.print(f"traceback: {printable(traceback)}", markup=False)
    for task in odd[:10]:
        console.print(f"not exactly one line: {task}", markup=False)
    by_kind: dict[str, list[str]] = {}
    for kind, answer, count in hostile["answers"]:
        by_kind.setdefault(kind, []).append(f"{count} x {answer}")
    answers = Table(title="hostile traffic")
    answers.add_column("kind")
    answers.add_column("answers")
    for kind, found in by_kind.items():
        answers.add_row(kind, ", ".join(found))
    console.print(answers)
    return all(kept is not False for _, _, kept in rows)


def _arrow(ends: Mapping[str, float]) -> str:
    return f"{ends['early']:.0f} to {ends['late']:.0f} ({ends['least']} to {ends['most']})"


def plot(figures: Figures, file: Path) -> None:
    """Draws memory, descriptors, threads and CPU over the time, with the faults.

    Raises:
        SetupError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise SetupError("matplotlib is missing", fix="pip install -e '.[plots]'") from error
    samples = figures["samples"]
    minutes = [sample["at_s"] / 60 for sample in samples]
    panels = (
        ("memory, MB", [sample["memory_mb"] for sample in samples]),
        ("descriptors", [sample["descriptors"] for sample in samples]),
        ("threads", [sample["threads"] for sample in samples]),
    )
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 6), sharex=True)
    for panel, (name, values) in zip(axes, panels, strict=True):
        panel.plot(minutes, values, color="#2c6fbb")
        panel.set_ylim(0, (1.9 if panel is axes[0] else 1.25) * max(values))
        panel.set_ylabel(name, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
        for at_s, _ in figures["faults"]:
            panel.axvline(at_s / 60, color="#b5484a", linewidth=0.6, linestyle=":")
    for at_s, name in figures["faults"]:
        axes[0].text(
            at_s / 60, 1.85 * max(panels[0][1]), name, fontsize=6, rotation=90, va="top", ha="right"
        )
    axes[-1].set_xlabel("minutes", fontsize=8)
    figure.tight_layout()
    try:
        figure.savefig(file, dpi=90)
    except OSError as error:
        raise SetupError(
            f"the plot cannot be written to {file}: {error.strerror or error}",
            fix="name a writable file with --plot",
        ) from error
    finally:
        plt.close(figure)
