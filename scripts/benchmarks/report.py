"""Tables of the pipeline benchmark, and the targets that its figures are held against."""

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.recipe import Figures

MEDIAN_S = {
    "klein": 0.125,
    "klein, 8 bits": 0.105,
    "schnell": 0.195,
    "schnell, 8 bits": 0.165,
    "klein, triposplat": 2.4,
}
"""From text to SPZ, by text-to-image model and, if it is another than triposr, back end."""
RUNG_S = {"klein, triposplat": {"half": 1.3}}
"""The same, by a lower rung."""
P95_OVER_MEDIAN = 1.10
PLAIN_OVER_FAST = 10.0
MEMORY_GIB = {
    "klein": 20.0,
    "klein, 8 bits": 15.5,
    "schnell, 8 bits": 22.0,
    "klein, triposplat": 22.0,
}
OBJECTS_PER_S = {"klein": 9.0}
"""At 8 tasks at a time."""
THROUGHPUT_GAIN = 1.15
OWN_TIME_RATIO = {
    "klein": 1.3,
    "klein, 8 bits": 1.3,
    "schnell": 1.2,
    "schnell, 8 bits": 1.2,
    "klein, triposplat": 1.3,
}
GPU_BUSY = 0.9
CANDIDATES = {name: 90 for name in MEDIAN_S if "triposplat" not in name}
READY_S = {"cold": 60.0, "warm": 25.0}
PSNR_DB = 30.0
EMBEDDING_ERROR = 0.01

_MB_PER_GIB = 2**30 / 1e6
_FILE_COLUMNS = 140


def targets(figures: Figures) -> list[Figures]:
    """Holds the fast recipe of a GPU preset against what it is meant to reach.

    Returns:
        A row for every target that was measured: `name`, `limit`, `measured`, `at_most` (else the
        limit is the least that is wanted) and `ok`.
    """
    model, fast = figures["model"], figures["recipes"].get("fast", {})
    if model not in MEDIAN_S or "seconds" not in fast:
        return []
    rows: list[Figures] = []

    def target(name: str, measured: float, limit: float, *, at_most: bool = True) -> None:
        ok = measured <= limit if at_most else measured >= limit
        row = {"name": name, "measured": measured, "limit": limit, "at_most": at_most, "ok": ok}
        rows.append(row)

    total = fast["seconds"]["total"]
    target("text to SPZ, median ms", 1000 * total["median"], 1000 * MEDIAN_S[model])
    for rung, limit in RUNG_S.get(model, {}).items():
        if rung in fast.get("rungs", {}):
            measured = 1000 * fast["rungs"][rung]["median"]
            target(f"text to SPZ at rung {rung}, median ms", measured, 1000 * limit)
    target("p95 / median", total["p95"] / total["median"], P95_OVER_MEDIAN)
    if "gpu_busy_ms" in fast:
        busy = fast["gpu_busy_ms"] / (1000 * total["median"])
        target("share of a task's time in which the GPU works", busy, GPU_BUSY, at_most=False)
    if "ratio" in figures:
        target("plain / fast", figures["ratio"]["total"], PLAIN_OVER_FAST, at_most=False)
    if "device_in_use" in fast["peak_memory_mb"] and model in MEMORY_GIB:
        # What torch reserves never shrinks, so this is the peak; CUDA's own memory is in it.
        in_use = fast["peak_memory_mb"]["device_in_use"] / _MB_PER_GIB
        target("device memory in use by all processes, GiB", in_use, MEMORY_GIB[model])
    throughput = fast.get("throughput", {})
    if "8" in throughput:
        gain = throughput["8"]["objects_per_s"] / throughput["1"]["objects_per_s"]
        if "triposplat" not in model:  # Whose flow leaves nothing to do beside it.
            target("throughput, 8 at a time / 1", gain, THROUGHPUT_GAIN, at_most=False)
        if model in OBJECTS_PER_S:
            pace = throughput["8"]["objects_per_s"]
            target("objects a second, 8 at a time", pace, OBJECTS_PER_S[model], at_most=False)
        slowest = max(row["own_time_ratio"] for row in throughput.values())
        target("slowest request without waiting / solo", slowest, OWN_TIME_RATIO[model])
    if "candidates" in fast and model in CANDIDATES:
        made = fast["candidates"]["1"]
        target("candidates in 25 s", made["objects"], CANDIDATES[model], at_most=False)
    if "cold" in fast:
        target("ready with an empty cache, s", fast["cold"]["ready_s"], READY_S["cold"])
        target("ready with a full cache, s", fast["ready_s"], READY_S["warm"])
    if "likeness" in figures:
        worst = min(figures["likeness"]["image_psnr_db"])
        target("picture against eager bfloat16, dB", worst, PSNR_DB, at_most=False)
        furthest = max(figures["likeness"]["embedding_errors"])
        target("embedding of the prompt, relative error", furthest, EMBEDDING_ERROR)
    return rows


def show(figures: Figures) -> None:
    """Prints everything that was measured."""
    console = Console()
    if not console.is_terminal:
        console.width = _FILE_COLUMNS
    measured = {name: row for name, row in figures["recipes"].items() if "seconds" in row}
    if not measured:
        return
    console.print(_stages(figures, measured))
    for name, row in measured.items():
        memory = ", ".join(f"{k} {v:,.0f} MB" for k, v in row["peak_memory_mb"].items())
        console.print(f"{name}: {row['machine']}; {_start(row)}; peak memory: {memory}")
        made = f"{row['gaussians']:,} Gaussians in {row['spz_bytes']:,} bytes"
        pace = f"{len(row['rows'])} tasks, {row['objects_per_s']:.2f} a second"
        console.print(f"{name}: {made}; {pace}")
        console.print(f"{name}: {_load(row)}")
        for warning in dict.fromkeys(row["warnings"]):
            console.print(f"{name}: warning: {warning}", markup=False)
    if any("rungs" in row for row in measured.values()):
        console.print(_rungs(measured))
    if any("throughput" in row for row in measured.values()):
        console.print(_throughput(measured))
    if any("candidates" in row for row in measured.values()):
        console.print(_candidates(measured))
    if "likeness" in figures:
        console.print(_likeness(figures["likeness"]))
    if figures["targets"]:
        console.print(_targets(figures["targets"]))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _stages(figures: Figures, measured: Figures) -> Table:
    columns = [f"{name} {kind} ms" for name in measured for kind in ("median", "p95")]
    title = f"preset {figures['preset']}, {figures['model']}, {figures['weights']} weights"
    table = _table(title, "stage", *columns, *(["plain / fast"] if "ratio" in figures else []))
    for stage in next(iter(measured.values()))["seconds"]:
        if stage == "total":
            table.add_section()
        cells = [
            f"{1000 * row['seconds'][stage][kind]:.1f}"
            for row in measured.values()
            for kind in ("median", "p95")
        ]
        if "ratio" in figures:
            cells.append(f"{figures['ratio'][stage]:.1f}")
        table.add_row(stage, *cells)
    return table


def _start(row: Figures) -> str:
    text = f"start {row['start_s']:.1f} s = weights {row['weights_s']:.1f} + "
    text += f"ready {row['ready_s']:.1f} (imports {row['imports_s']:.1f})"
    if "cold" in row:
        text += f"; ready with an empty cache {row['cold']['ready_s']:.1f} s"
    return text


def _load(row: Figures) -> str:
    noise = row["cpu_noise"]
    text = "a millisecond of Python work: p95 / median "
    text += f"{noise['p95_over_median']:.2f}, p99 / median {noise['p99_over_median']:.2f}, "
    text += f"worst {noise['worst_ms']:.1f} ms"
    if "gpu_busy_ms" in row:
        busy, median = row["gpu_busy_ms"], 1000 * row["seconds"]["total"]["median"]
        text += f"; the GPU works {busy:.0f} ms of {median:.0f} ({busy / median:.0%})"
    return text


def _rungs(measured: Figures) -> Table:
    table = _table("one task at a time", "recipe, rung", "median ms", "p95 ms")
    for name, row in measured.items():
        for rung, found in row.get("rungs", {}).items():
            cells = (f"{1000 * found[key]:.1f}" for key in ("median", "p95"))
            table.add_row(f"{name}, {rung}", *cells)
    return table


def _throughput(measured: Figures) -> Table:
    table = _table(
        "throughput",
        "recipe, tasks at a time",
        "objects / s",
        "latency median s",
        "p95 s",
        "max s",
        "slowest without waiting / solo",
    )
    notes = []
    for name, row in measured.items():
        for concurrency, found in row.get("throughput", {}).items():
            latency = found["latency_s"]
            table.add_row(
                f"{name}, {concurrency}",
                f"{found['objects_per_s']:.2f}",
                *(f"{latency[key]:.2f}" for key in ("median", "p95", "max")),
                f"{found['own_time_ratio']:.2f}",
            )
            if concurrency != "1" and "slowest" in found:
                notes.append(f"{name}, {concurrency}: {_slowest(found['slowest'])}")
    table.caption = "\n".join(notes)
    return table


def _slowest(found: Figures) -> str:
    beside = ", ".join(f"{stage} {1000 * s:.0f}" for stage, s in found["beside"].items())
    return (
        f"most delayed is {found['stage']} of task {found['task']}: "
        f"{1000 * found['ran_s']:.0f} ms, alone {1000 * found['alone_s']:.0f}; "
        f"beside it {beside or 'nothing'}"
    )


def _candidates(measured: Figures) -> Table:
    table = _table(
        "candidates of one request",
        "recipe, pictures for each object",
        "objects",
        "pictures",
        "first s",
        "total s",
        "ms / object",
        "ms / picture",
    )
    for name, row in measured.items():
        for pictures, found in row.get("candidates", {}).items():
            table.add_row(
                f"{name}, {pictures}",
                str(found["objects"]),
                str(found["pictures"]),
                *(f"{found[key]:.2f}" for key in ("first_s", "total_s")),
                *(f"{found[key]:.1f}" for key in ("ms_per_object", "ms_per_picture")),
            )
    return table


def _likeness(found: Figures) -> Table:
    def decibels(values: list[float]) -> str:
        return ", ".join(f"{value:.1f}" for value in values)

    table = _table("fast against plain", "what", "likeness")
    table.add_row("pictures, dB", decibels(found["image_psnr_db"]))
    errors = ", ".join(f"{value:.2%}" for value in found["step_errors"])
    table.add_row("transformer at each step, relative error", errors)
    errors = ", ".join(f"{value:.2%}" for value in found["embedding_errors"])
    table.add_row("embedding of the prompt, relative error", errors)
    for name, rounding in found["rounding"].items():
        errors = ", ".join(f"{value:.2%}" for value in rounding)
        table.add_row(f"the same, {name} against float32", errors)
    table.add_row("scene code, relative error", f"{found['scene_code_error']:.2%}")
    table.add_row("views of the cloud, dB", decibels(found["view_psnr_db"]))
    table.add_row("Gaussians", " and ".join(f"{count:,}" for count in found["gaussians"]))
    return table


def _targets(rows: list[Figures]) -> Table:
    table = _table("targets", "target", "limit", "measured", "")
    for row in rows:
        limit = f"{'at most' if row['at_most'] else 'at least'} {row['limit']:g}"
        table.add_row(row["name"], limit, f"{row['measured']:.2f}", "ok" if row["ok"] else "missed")
    return table
