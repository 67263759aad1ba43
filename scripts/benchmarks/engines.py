"""Engines in processes of their own: throughput by their number, what the way costs, killed ones.

Every engine is served through the real service, which has more requests than engines at any time.
"""

import asyncio
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.engine import Engine
from generation.presets import preset
from generation.settings import GenerationSettings, ScoringSettings
from miner.engines import EngineClient
from miner.engines.joining import Identity, identity_of
from miner.engines.local import LocalEngine
from miner.engines.ray_engine import EngineActor, RayLink, RayProcess
from miner.engines.remote import LinkedEngine
from miner.engines.wire import SetupFault
from miner.logs import configure_logs
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.settings.engines import EnginesSettings
from miner.surroundings import settle
from protocol.tasks import TextTask
from scripts.benchmarks.figures import write_figures

if TYPE_CHECKING:
    # Both load torch.
    from scripts.benchmarks.full_size import Sizes
    from scripts.benchmarks.networks import Networks

Figures = dict[str, Any]
BUDGET_S = 300.0
START_LIMIT_S = 400.0
"""For all engines to serve: several minutes where nothing has been compiled before."""

AHEAD = 3
"""Requests under way for each engine."""

ANSWER_GAUSSIANS = 125_000
"""As many make an SPZ of 2 MB."""

_ANY = Identity("", "", "", "", "")


def _stages_without_work(settings: GenerationSettings, models_dir: Path | None) -> Engine:
    """Every stage returns at once what was made before: an object of 2 MB."""
    from scripts.benchmarks.whole_answer import functions

    return Engine(settings, functions=functions(ANSWER_GAUSSIANS), progress=False)


class _Weightless(EngineActor):
    """Nothing has to be downloaded, so nothing is compared."""

    async def identify(self, settings: str, models_dir: str | None) -> Identity:
        """See `EngineHost`."""
        return _ANY


class RandomActor(_Weightless):
    """Networks with random weights.

    Attributes:
        sizes: Their shapes; full size when None.
    """

    sizes: "Sizes | None" = None

    def __init__(self) -> None:
        super().__init__()
        self._make_engine = self._engine_of_networks

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        """See `EngineHost`."""
        settle()  # Before torch is imported.
        build = partial(_random_networks, GenerationSettings.model_validate_json(settings))
        # The event loop goes on. A thread that ends leaves no OpenMP threads beside the engine's.
        with ThreadPoolExecutor(1) as thread:
            loop = asyncio.get_running_loop()
            self._networks = await loop.run_in_executor(thread, build, self.sizes)
        return await super().load(settings, models_dir)

    def _engine_of_networks(self, settings: GenerationSettings, models_dir: Path | None) -> Engine:
        from scripts.benchmarks.networks import fast_stages

        stages = fast_stages(settings, self._networks)
        return Engine(
            settings,
            functions=stages.functions,
            drop_caches=stages.drop_caches,
            remembers=stages.remembers,
            progress=False,
        )


def _random_networks(settings: GenerationSettings, sizes: "Sizes | None") -> "Networks":
    from scripts.benchmarks.full_size import FULL, build

    with tempfile.TemporaryDirectory() as folder:
        return build(settings, Path(folder), sizes or FULL)


class IdleActor(_Weightless):
    """Stages that take no time, with an object of 2 MB."""

    def __init__(self) -> None:
        super().__init__()
        self._make_engine = _stages_without_work


class _IdleEngine(LocalEngine):
    """The same in this process."""

    def __init__(self, settings: GenerationSettings) -> None:
        super().__init__(settings)
        self._idle = _stages_without_work(settings, None)
        self.run = self._idle.run  # type: ignore[method-assign]
        self.start, self.warm_up = self._idle.start, self._idle.warm_up  # type: ignore[method-assign]


def _far(
    ray: RayProcess, settings: GenerationSettings, count: int, actor: type[EngineActor]
) -> list[EngineClient]:
    def identify(text: str, folder: Path | None) -> Identity:
        return identity_of(text, folder) if actor is EngineActor else _ANY

    return [
        LinkedEngine(
            settings, ray.opener(settings, number, actor), name=f"ray{number}", identify=identify
        )
        for number in range(count)
    ]


class _Served:
    """A service on these engines, ready with all of them.

    Attributes:
        start_s: Seconds until all were ready.
    """

    def __init__(self, engines: Sequence[EngineClient], folder: Path) -> None:
        self.engines = list(engines)
        self.log = ScoreLog(folder)
        self.service = MinerService(
            self.engines, self.log, budget_s=BUDGET_S, margin_s=0.2, sole_caller=True
        )

    async def __aenter__(self) -> "_Served":
        began = time.monotonic()
        await self.service.start()
        await self.all_up()
        self.start_s = time.monotonic() - began
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.service.drain()
        await self.service.close()
        self.log.close()

    async def all_up(self) -> None:
        async with asyncio.timeout(START_LIMIT_S):
            while not all(engine.up for engine in self.service.snapshot().engines):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def ask(self, number: int) -> Answer:
        task = TextTask(id=str(number), prompt=f"a red car {number}", seed=number)
        caller = Caller("benchmark")
        return await self.service.handle(Request(task, caller, "http", time.monotonic()))

    async def many(self, count: int, at_once: int, first: int = 0) -> tuple[list[Answer], float]:
        """Keeps requests under way; returns the answers and objects a second."""
        numbers, answers = iter(range(first, first + count)), list[Answer]()

        async def one_after_the_other() -> None:
            for number in numbers:
                answers.append(await self.ask(number))

        began = time.monotonic()
        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
        return answers, count / (time.monotonic() - began)


def _row(answers: Sequence[Answer], rate: float) -> Figures:
    done = [answer for answer in answers if answer.outcome == "completed"]
    if not done:
        raise RuntimeError(f"no task was completed; the first: {answers[0].reason}")
    errors = [abs((a.predicted_s or 0.0) - a.total_s) / a.total_s for a in done]
    way = [1000.0 * a.timings["hand_over"] for a in done if "hand_over" in a.timings]
    row: Figures = {
        "objects_per_s": rate,
        "completed": len(done),
        "asked": len(answers),
        "reasons": Counter(answer.reason_code for answer in answers),
        "seconds_p50": float(np.median([a.total_s for a in done])),
        "prediction_error_median": statistics.median(errors),
        "by_engine": {n: sum(a.engine == n for a in done) for n in {a.engine or "" for a in done}},
    }
    if way:
        row |= {"hand_over_ms_p50": float(np.median(way)), "hand_over_ms_p95": _p95(way)}
    return row


def _p95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95))


async def _throughput(engines: list[EngineClient], requests: int, folder: Path) -> Figures:
    async with _Served(engines, folder) as served:
        await served.many(2 * len(engines), len(engines))
        answers, rate = await served.many(requests, AHEAD * len(engines), first=1000)
        return _row(answers, rate) | {"start_s": served.start_s}


async def _way(engines: list[EngineClient], requests: int, folder: Path) -> Figures:
    """Seconds of one request at a time, with stages that take none."""
    async with _Served(engines, folder) as served:
        await served.many(20, 1)
        answers, rate = await served.many(requests, 1, first=1000)
        milliseconds = [1000.0 * answer.total_s for answer in answers]
        row = _row(answers, rate)
        row |= {"ms_p50": float(np.median(milliseconds)), "ms_p95": _p95(milliseconds)}
        return row | {"bytes": len(answers[0].asset)}


async def _kills(engines: list[EngineClient], kills: int, folder: Path) -> Figures:
    """Ends one engine's process after the other by SIGKILL, under load."""
    async with _Served(engines, folder) as served:
        over = asyncio.Event()
        answers: list[Answer] = []

        async def keep_asking(place: int) -> None:
            number = 10_000 * (place + 1)
            while not over.is_set():
                answers.append(await served.ask(number))
                number += 1

        asking = [asyncio.create_task(keep_asking(place)) for place in range(AHEAD * len(engines))]
        for number in range(kills):
            await served.all_up()
            await asyncio.sleep(1.0)
            victim = engines[number % len(engines)]
            if isinstance(victim, LinkedEngine) and isinstance(victim.link, RayLink):
                os.kill(victim.link.process, signal.SIGKILL)
                print(f"kill {number + 1} of {kills}", flush=True)
            await asyncio.sleep(0.5)
        await served.all_up()
        over.set()
        await asyncio.gather(*asking)
        served.log.flush()
        lines = served.log.path.read_text().splitlines()
        answered = sum('"event": "answered"' in line for line in lines)
        lost = sum('"event": "engine_lost"' in line for line in lines)
        others = [answer for answer in answers if answer.lost_engine is None]
        return {
            "kills": kills,
            "engine_lost_lines": lost,
            "asked": len(answers),
            "answered_lines": answered,
            "completed": sum(answer.outcome == "completed" for answer in answers),
            "placed_again": len(answers) - len(others),
            "others_on_time": sum(a.on_time for a in others) / max(1, len(others)),
        }


def run(
    *,
    preset_name: str = "embedded",
    weights: str = "real",
    counts: Sequence[int] | None = None,
    requests: int = 60,
    kills: int = 0,
    out: Path | None = None,
) -> None:
    """Measures and prints a table.

    Args:
        preset_name: What to generate with.
        weights: "real", or "random" of full size, without a scorer.
        counts: Numbers of engines, ascending: the first start compiles for all. 1 and 2 if not
            given.
        requests: Tasks of each measurement, for each engine.
        kills: How often an engine's process is ended under load.
        out: File for the figures.
    """
    counts = sorted(counts or (1, 2))
    chosen = preset(preset_name)
    actor: type[EngineActor] = EngineActor
    if weights == "random":
        # Engines without the scorer's packages are measured as well.
        chosen = chosen.model_copy(update={"scoring": ScoringSettings()})
        actor = RandomActor
    configure_logs("WARNING")
    figures: Figures = {"preset": preset_name, "weights": weights}
    asyncio.run(_measure(figures, chosen, actor, counts, requests, kills, out))
    _show(figures, counts)


async def _measure(
    figures: Figures,
    chosen: GenerationSettings,
    actor: type[EngineActor],
    counts: Sequence[int],
    requests: int,
    kills: int,
    out: Path | None,
) -> None:
    idle = preset("embedded").model_copy(update={"rungs": ()})
    ray = RayProcess(EnginesSettings(kind="ray"), cores=max(counts))

    async def measure(name: str, measured: Coroutine[Any, Any, Figures]) -> None:
        print(f"{name} ...", flush=True)
        figures[name] = await measured
        write_figures(out, figures)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        try:
            figures["cluster"] = vars(await ray.open())
            await measure("way, local", _way([_IdleEngine(idle)], 200, folder / "way-local"))
            far = _far(ray, idle, 1, IdleActor)
            await measure("way, ray", _way(far, 200, folder / "way-ray"))
            if actor is EngineActor:
                local: list[EngineClient] = [LocalEngine(chosen)]
                await measure("local, 1", _throughput(local, requests, folder / "local"))
            for count in counts:
                far = _far(ray, chosen, count, actor)
                measured = _throughput(far, requests * count, folder / str(count))
                await measure(f"ray, {count}", measured)
            if kills:
                far = _far(ray, chosen, max(counts), actor)
                await measure("kills", _kills(far, kills, folder / "kills"))
        finally:
            ray.close()


def _show(figures: Mapping[str, Any], counts: Sequence[int]) -> None:
    local, far = figures["way, local"], figures["way, ray"]
    print(
        f"\nway of {far['bytes'] / 1e6:.1f} MB: local {local['ms_p50']:.1f} ms, p95 "
        f"{local['ms_p95']:.1f}; Ray {far['ms_p50']:.1f}, p95 {far['ms_p95']:.1f}; hand-over p95 "
        f"{far['hand_over_ms_p95']:.1f}\n"
    )
    print(
        "| engines | start, s | objects/s | x one | seconds p50 | prediction error | "
        "hand-over p95, ms |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    one = figures[f"ray, {min(counts)}"]["objects_per_s"] / min(counts)
    for name, row in figures.items():
        if name.startswith(("local, ", "ray, ")):
            rate, way = row["objects_per_s"], row.get("hand_over_ms_p95")
            print(
                f"| {name} | {row['start_s']:.0f} | {rate:.2f} | {rate / one:.2f} | "
                f"{row['seconds_p50']:.2f} | {100 * row['prediction_error_median']:.0f} % | "
                f"{'' if way is None else f'{way:.1f}'} |"
            )
    if "kills" in figures:
        print(f"\nkills: {figures['kills']}")
