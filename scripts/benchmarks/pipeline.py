"""Times a preset from prompt to asset: `python -m scripts.benchmark pipeline`."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from generation.presets import preset, variant
from generation.settings import GenerationSettings
from generation.weights.store import locate_models
from protocol.errors import SetupError
from scripts.benchmarks import report
from scripts.benchmarks.changed_preset import changed, model_name
from scripts.benchmarks.figures import write_figures
from scripts.benchmarks.recipe import Figures, RecipeName, Request

_DEFAULT_RUNS = {"cpu": 10, "cuda": 30}
_DEFAULT_CANDIDATES_S = {"cpu": 0, "cuda": 25}
_DEFAULT_REQUESTS = {"cpu": 0, "cuda": 24}
_MOST_PLAIN_REQUESTS = 8
_DEFAULT_MEMORY_GIB = {"gpu16": 15.5, "gpu24": 22.0, "gpu24-splat": 22.0}


def run(
    *,
    preset_name: str = "embedded",
    recipes: Sequence[RecipeName] | None = None,
    weights: Literal["random", "real"] = "real",
    runs: int | None = None,
    requests: int | None = None,
    plain_runs: int | None = None,
    candidates: int | None = None,
    memory_gib: float | None = None,
    models_dir: Path | None = None,
    model: str | None = None,
    eight_bit: bool | None = None,
    accept_dinov3_license: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measures recipes over warm text tasks, each in a process of its own, and prints tables.

    On CUDA the fast recipe starts twice, first with an empty cache of compiled code; its figures
    come from the second start. The file is written after every recipe, so that none is lost.

    Args:
        preset_name: The preset.
        recipes: "plain", "fast" or both, which gives their ratio and likeness; "fast" when None.
        weights: "real" loads the preset's weights, "random" draws full size on a GPU.
        runs: Tasks one after the other; 30 on CUDA and 10 on the CPU when None.
        requests: Tasks at each concurrency and each rung; 24 on CUDA, none on the CPU when None.
            The plain recipe takes at most 8, since each takes seconds.
        plain_runs: Tasks of the plain recipe one after the other; as `runs` when None.
        candidates: Seconds of one request of the fast recipe in which candidates are made; 25 on
            CUDA, none on the CPU when None.
        memory_gib: Most device memory of the fast recipe in GiB; when None 22 for gpu24 and
            gpu24-splat, 15.5 for gpu16.
        models_dir: The models folder; the default one when None.
        model: Short name of the text-to-image model; the preset's own when None.
        eight_bit: Whether it is held in 8 bits; as the preset says when None.
        accept_dinov3_license: Whether the operator accepts the licence of TripoSplat's DINOv3,
            which a preset with this back end needs for its own weights.
        out: JSON file to write the same figures to, if any.

    Returns:
        `recipes`, name to what `recipe.measure` found, with `cold` (the first start) on CUDA;
        with both recipes `ratio`, plain over fast by stage, and `likeness` (`likeness.compare`);
        `targets`, each `name`, `limit`, `measured` and `ok`; what was measured; and the fast
        recipe's `machine`, `seconds`, `start_s`, `spz_bytes` and `peak_memory_mb`.

    Raises:
        SetupError: Weights are missing, or their licence was not accepted. Or a recipe cannot
            start, or failed; what was measured is printed all the same.
    """
    settings = changed(
        preset(preset_name), model, eight_bit, accept_dinov3_license=accept_dinov3_license
    )
    kind = "cpu" if settings.device == "cpu" else "cuda"
    if weights == "random" and kind == "cpu":
        raise SetupError(
            f"random weights have full size, and preset {preset_name} runs on the CPU",
            fix="--preset gpu80, gpu24 or gpu16 on a CUDA device, or --weights real",
        )
    if weights == "real":
        locate_models(settings, models_dir)
    runs = _DEFAULT_RUNS[kind] if runs is None else runs
    requests = _DEFAULT_REQUESTS[kind] if requests is None else requests
    own_limit = None
    if variant(settings) == preset_name:
        own_limit = _DEFAULT_MEMORY_GIB.get(preset_name)
    chosen = sorted(set(recipes or ("fast",)), reverse=True)  # plain is what fast is held against
    candidates = _DEFAULT_CANDIDATES_S[kind] if candidates is None else candidates
    figures: Figures = {
        "preset": preset_name,
        "model": model_name(settings),
        "weights": weights,
        "runs": runs,
        "requests": requests,
        "recipes": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in chosen:
            fast = name == "fast"
            request = Request(
                preset=preset_name,
                recipe=name,
                weights=weights,
                runs=runs if fast or plain_runs is None else plain_runs,
                requests=requests if fast else min(requests, _MOST_PLAIN_REQUESTS),
                candidates_s=candidates if fast and settings.scoring.scorer != "none" else 0,
                models_dir=None if models_dir is None else str(models_dir.absolute()),
                memory_gib=memory_gib or own_limit if fast else None,
                model=model,
                eight_bit=eight_bit,
                accept_dinov3_license=accept_dinov3_license,
                likeness=str(scratch / name) if len(chosen) == 2 else None,
                reference=str(scratch / "plain") if (scratch / "plain").exists() else None,
            )
            figures["recipes"][name] = _measure(request, settings, scratch)
            write_figures(out, figures)
        combine(figures)
    write_figures(out, figures)
    report.show(figures)
    for row in figures["recipes"].values():
        if "error" in row:
            raise SetupError(row["error"], fix=row["fix"])
    return figures


def combine(figures: Figures) -> None:
    """Adds what follows from the recipes measured so far; see `run`."""
    measured = {name: row for name, row in figures["recipes"].items() if "seconds" in row}
    if not measured:
        return
    last = measured.get("fast") or measured["plain"]
    figures |= {
        key: last[key] for key in ("machine", "seconds", "start_s", "spz_bytes", "peak_memory_mb")
    }
    if len(measured) == 2:
        plain, fast = measured["plain"]["seconds"], measured["fast"]["seconds"]
        figures["ratio"] = {name: plain[name]["median"] / fast[name]["median"] for name in fast}
        folders = [row.pop("likeness", None) for row in (measured["plain"], measured["fast"])]
        if all(folders):
            from scripts.benchmarks.likeness import compare

            figures["likeness"] = compare(*map(Path, folders))
    figures["targets"] = report.targets(figures)


def _measure(request: Request, settings: GenerationSettings, scratch: Path) -> Figures:
    """Figures of one recipe, from a process of its own, or from two for the cold start."""
    if request.recipe == "plain" or not settings.accelerate:
        return _start(request, scratch, f"{request.recipe} recipe", {})
    compiled = scratch / "compiled"
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
    }
    cold = _start(replace(request, runs=0), scratch, "fast recipe, empty cache", caches)
    if "error" in cold:
        return cold
    return _start(request, scratch, "fast recipe, full cache", caches) | {"cold": cold}


def _start(request: Request, scratch: Path, title: str, environment: dict[str, str]) -> Figures:
    Console(stderr=True).print(f"[dim]{title} ...[/dim]")
    request_file, result_file = scratch / "request.json", scratch / "result.json"
    request_file.write_text(json.dumps(asdict(request)), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "scripts.benchmarks.recipe",
        str(request_file),
        str(result_file),
    ]
    done = subprocess.run(command, env=os.environ | environment, check=False)
    found: Figures = {}
    if result_file.exists():
        found = json.loads(result_file.read_text(encoding="utf-8"))
    if done.returncode and "error" not in found:
        found["error"] = f"the {title} ended with exit status {done.returncode}"
        found["fix"] = "see the log above; a negative status is a signal, -9 too little memory"
    return found
