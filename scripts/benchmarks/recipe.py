"""One recipe, measured in a process of its own, so that memory and start are its own.

Started by `scripts.benchmarks.pipeline`: `python -m scripts.benchmarks.recipe REQUEST RESULT`.
"""

import asyncio
import itertools
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from loguru import logger

from generation.engine import Engine
from generation.errors import GenerationError
from generation.plan import Plan, Rung, Step
from generation.presets import preset
from generation.quiet import quiet_libraries
from generation.result import Generation
from generation.settings import GenerationSettings, ScoringSettings
from generation.stage import PROMPT_NEW, SCORE_STAGE
from generation.step_run import OnEvent
from miner.request import Caller
from miner.request import Request as MinerRequest
from miner.scheduling.candidates import CandidateLimits
from miner.score.log import ScoreLog
from miner.service import MinerService
from protocol.errors import SetupError
from protocol.tasks import TextTask
from scripts.benchmarks.changed_preset import changed
from scripts.benchmarks.concurrent import throughput
from scripts.benchmarks.device_memory import DeviceMemory
from scripts.benchmarks.kept_warnings import kept_warnings
from scripts.benchmarks.machine_load import cpu_noise, gpu_busy_ms
from scripts.benchmarks.timing import quantiles, seconds_by_stage, wait

if TYPE_CHECKING:
    # Both load torch, whose import is measured.
    from scripts.benchmarks.full_size import Sizes
    from scripts.benchmarks.networks import Networks

CONCURRENCIES = (1, 4, 8)
CANDIDATE_PICTURES = (1, 4)
"""Values of `CandidateLimits.pictures` that are measured."""
TRACED = 10
"""Tasks that are traced for `gpu_busy_ms`."""
NOISE_PIECES, NOISE_PIECES_A_RUN = 2_000, 200
"""Most pieces of a millisecond for `cpu_noise`, and fewer of them for a measurement of few runs."""
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "brown", "white")
THINGS = ("cube", "car", "house", "chair", "mug", "rocket", "sphere", "mushroom", "table")

RecipeName = Literal["plain", "fast"]
Figures = dict[str, Any]
Save = Callable[[Figures], None]


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        preset: Name of the preset.
        recipe: "fast" is the preset as it is, "plain" what it is compared with.
        weights: "random" builds full-size networks, "real" loads the preset's.
        runs: Tasks one after the other; 0 ends at ready.
        requests: Tasks at each concurrency and each rung; 0 leaves both out.
        models_dir: The models folder; the default one when None.
        memory_gib: Most memory of the device that may be allocated, in GiB.
        candidates_s: Seconds from a request to the end of its candidates; 0 makes none.
        likeness: Folder for a recording of what the networks answer, if any.
        reference: Folder of the recording whose inputs are taken.
        model: Short name of the text-to-image model; the preset's own when None.
        eight_bit: Whether it is held in 8 bits; as the preset says when None.
        accept_dinov3_license: Whether the operator accepts the licence of TripoSplat's DINOv3.
    """

    preset: str
    recipe: RecipeName
    weights: Literal["random", "real"]
    runs: int
    requests: int = 0
    models_dir: str | None = None
    memory_gib: float | None = None
    candidates_s: float = 0.0
    likeness: str | None = None
    reference: str | None = None
    model: str | None = None
    eight_bit: bool | None = None
    accept_dinov3_license: bool = False


def measure(
    request: Request, settings: GenerationSettings, save: Save, sizes: "Sizes | None" = None
) -> None:
    """Measures, and hands the figures so far to `save` whenever there are more of them.

    Figures are `machine`; `imports_s`, `weights_s` (reading or drawing them), `ready_s` (imports,
    compiling, recording and warm-up, without the weights) and `start_s` (all of it); `seconds` by
    stage, for `text_to_image` (see `seconds_by_stage`) and for `total`, each `median` and `p95`;
    `rows`, the seconds of each task; `objects_per_s` of the same tasks; `cpu_noise` just before
    them and, on CUDA, `gpu_busy_ms` of further ones (see `machine_load`); `gaussians` and
    `spz_bytes`, of the median file in the recipe's own format; `peak_memory_mb` (see
    `DeviceMemory.peaks`); `rungs`, `median` and `p95` of a task by rung; `throughput` by
    concurrency; `candidates` (see `_candidates`); `warnings` of the log.

    Args:
        request: What to measure.
        settings: The preset.
        save: Called with the same dict, which grows.
        sizes: Of random networks; full size when None.

    Raises:
        SetupError: The preset cannot start.
        GenerationEnded: A task failed.
    """
    figures: Figures = {"warnings": []}
    with kept_warnings(figures["warnings"]), tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with quiet_libraries():
            # With what the libraries only import when it is named.
            from diffusers import FluxPipeline  # noqa: F401

        from scripts.benchmarks.likeness import record
        from scripts.benchmarks.networks import fast_stages
        from scripts.benchmarks.plain import plain_settings, plain_stages

        imported = time.perf_counter()
        plain = request.recipe == "plain"
        settings = plain_settings(settings) if plain else settings
        memory = DeviceMemory(settings.device, request.memory_gib)
        # Not in this thread, which would keep OpenMP threads beside those of the engine's.
        with ThreadPoolExecutor(1) as thread:
            loading = thread.submit(_networks, request, settings, Path(folder), sizes)
            networks = loading.result()
        if networks.scorer is None:
            settings = settings.model_copy(update={"scoring": ScoringSettings()})
        wait(settings.device)
        read = time.perf_counter()
        figures["machine"] = _machine(settings.device)
        figures["imports_s"] = imported - begin
        figures["weights_s"] = read - imported
        stages = (plain_stages if plain else fast_stages)(settings, networks)
        engine = Engine(
            settings,
            functions=stages.functions,
            drop_caches=stages.drop_caches,
            remembers=stages.remembers,
            progress=False,
        )
        asyncio.run(_serve(engine, request, memory, figures, save, begin=read))
        if request.likeness is not None and request.runs:
            reference = None if request.reference is None else Path(request.reference)
            record(networks, settings, Path(request.likeness), reference)
            figures["likeness"] = request.likeness
            save(figures)


def _networks(
    request: Request, settings: GenerationSettings, folder: Path, sizes: "Sizes | None"
) -> "Networks":
    if request.weights == "random":
        from scripts.benchmarks.full_size import FULL, build

        return build(settings, folder, sizes or FULL)
    from scripts.benchmarks.networks import load_networks

    return load_networks(settings, None if request.models_dir is None else Path(request.models_dir))


async def _serve(
    engine: Engine,
    request: Request,
    memory: DeviceMemory,
    figures: Figures,
    save: Save,
    *,
    begin: float,
) -> None:
    try:
        await engine.start()
        await engine.warm_up()
        figures["ready_s"] = figures["imports_s"] + time.perf_counter() - begin
        figures["start_s"] = figures["ready_s"] + figures["weights_s"]
        memory.mark_ready()
        client = _Client(engine)
        if request.runs:
            await _solo(client, request.runs, figures)
        figures["peak_memory_mb"] = memory.peaks()
        save(figures)
        if request.runs and request.requests:
            figures["rungs"] = await _rungs(client, request.requests)
            save(figures)
            for concurrency in CONCURRENCIES:
                row = await throughput(
                    client.ask, concurrency, request.requests, client.stages, figures["seconds"]
                )
                figures.setdefault("throughput", {})[str(concurrency)] = row
                figures["peak_memory_mb"] = memory.peaks()
                save(figures)
        if request.candidates_s:
            figures["candidates"] = await _candidates(client, request.candidates_s)
            figures["peak_memory_mb"] = memory.peaks()
            save(figures)
    finally:
        await engine.close()


class _Client:
    """Asks an engine for text tasks, from the prompt to the file; no two have the same prompt.

    Args:
        engine: Warm.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        steps = self._to_the_file(TextTask(id="stages", prompt="a cube"), engine.ladder[0])
        self.stages = list(dict.fromkeys(step.stage for step in steps))
        self.prompts = distinct_prompts()
        self._arrivals = itertools.count()

    async def ask(
        self, rung: Rung | None = None, *, on_event: OnEvent = lambda event: None
    ) -> tuple[Generation, float]:
        """Makes an object, by default at the highest rung; returns its seconds, too."""
        rung = rung or self.engine.ladder[0]
        arrival = next(self._arrivals)
        begin = time.perf_counter()
        while True:
            task = TextTask(id=f"run-{arrival}", prompt=next(self.prompts), seed=arrival)
            plan = Plan(rung, self._to_the_file(task, rung))
            if plan.steps[0].cost_key == PROMPT_NEW:
                break
            # The warm-up has used this prompt.
        result = await self.engine.run(task, plan, turn=(0.0, arrival), on_event=on_event)
        return result, time.perf_counter() - begin

    def _to_the_file(self, task: TextTask, rung: Rung) -> tuple[Step, ...]:
        steps = self.engine.route(task, rung)
        return tuple(step for step in steps if step.stage != SCORE_STAGE.name)


def distinct_prompts() -> Iterator[str]:
    """Prompts without end, no two the same, so that no cache of embeddings knows one."""
    for index in itertools.count():
        # The two lengths have no common divisor, so every pair has its turn.
        round_number = index // (len(COLOURS) * len(THINGS))
        ending = f" number {round_number + 1}" if round_number else ""
        yield f"a {COLOURS[index % len(COLOURS)]} {THINGS[index % len(THINGS)]}{ending}"


async def _solo(client: _Client, runs: int, figures: Figures) -> None:
    rows: list[dict[str, float]] = []
    sizes, gaussians = [], []
    figures["cpu_noise"] = cpu_noise(min(NOISE_PIECES, NOISE_PIECES_A_RUN * runs))
    for _ in range(runs):
        result, total = await client.ask()
        rows.append({**result.timings, "total": total})
        sizes.append(len(result.spz))
        gaussians.append(len(result.cloud))
    figures["seconds"] = seconds_by_stage(rows, [*client.stages, "total"])
    figures["rows"] = rows
    figures["objects_per_s"] = runs / sum(row["total"] for row in rows)
    if client.engine.settings.device.startswith("cuda"):
        figures["gpu_busy_ms"] = await gpu_busy_ms(min(runs, TRACED), client.ask)
    figures["spz_bytes"] = int(np.median(sizes))
    figures["gaussians"] = int(np.median(gaussians))


async def _rungs(client: _Client, runs: int) -> Figures:
    """Seconds of a task that has the machine to itself, by rung."""
    return {
        rung.name: quantiles([(await client.ask(rung))[1] for _ in range(runs)])
        for rung in client.engine.ladder
    }


async def _candidates(client: _Client, seconds: float) -> Figures:
    """Asks a miner's service for one object, with as many candidates as the time allows.

    Returns:
        By pictures per lifted object, `objects` and `pictures` of one request, `first_s` and
        `total_s`, `ms_per_object` and `ms_per_picture` of the candidates.
    """
    found: Figures = {}
    logger.disable("miner")  # It logs each step.
    for pictures in CANDIDATE_PICTURES:
        limits = CandidateLimits(max=10_000, target=inf, spend=1.0, pictures=pictures)
        with tempfile.TemporaryDirectory() as folder:
            log = ScoreLog(Path(folder))
            service = MinerService(
                [_Started(client.engine)], log, budget_s=seconds, margin_s=0.0, candidates=limits
            )
            await service.start()
            task = TextTask(id="candidates", prompt=next(client.prompts), seed=1)
            request = MinerRequest(task, Caller("benchmark"), "http", time.monotonic())
            answer = await service.handle(request)
            log.close()
        if answer.outcome != "completed":
            raise GenerationError(answer.reason)
        more = answer.candidates_s * 1000
        found[str(pictures)] = {
            "objects": answer.candidates,
            "pictures": answer.pictures,
            "first_s": answer.total_s - answer.candidates_s,
            "total_s": answer.total_s,
            "ms_per_object": more / max(1, answer.candidates - 1),
            "ms_per_picture": more / max(1, answer.pictures - 1),
        }
    return found


class _Started:
    """An engine that is warm, as a miner's service takes it; closing it is left to its owner."""

    name = "benchmark"
    machine = "benchmark"

    def __init__(self, engine: Engine) -> None:
        self.ladder, self.lanes, self.outputs = engine.ladder, engine.lanes, engine.outputs
        self.route, self.run, self.warm_up = engine.route, engine.run, engine.warm_up

    async def start(self) -> None:
        """Nothing is left to do."""

    async def close(self) -> bool:
        """Leaves the engine as it is."""
        return True


def _machine(device: str) -> str:
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, torch {torch.__version__}"


def main() -> int:
    """Reads a `Request`, writes the figures; `error` is there if they are not complete."""
    request_file, result_file = map(Path, sys.argv[1:])
    request = Request(**json.loads(request_file.read_text(encoding="utf-8")))
    latest: Figures = {}

    def save(figures: Figures) -> None:
        latest.update(figures)
        result_file.write_text(json.dumps(latest), encoding="utf-8")

    try:
        settings = changed(
            preset(request.preset),
            request.model,
            request.eight_bit,
            accept_dinov3_license=request.accept_dinov3_license,
        )
        measure(request, settings, save)
    except SetupError as error:
        save({"error": error.problem, "fix": error.fix})
        return 1
    except Exception as error:
        logger.exception("the {} recipe failed", request.recipe)
        save({"error": f"{type(error).__name__}: {error}", "fix": "see the log above"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
