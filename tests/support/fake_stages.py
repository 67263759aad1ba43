"""Stage functions that do what a test tells them, in the engine's own threads."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from generation.engine import Engine
from generation.errors import GenerationError
from generation.lift import BACK_ENDS
from generation.plan import Plan, Rung
from generation.presets import preset
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.settings import GenerationSettings, ScoringSettings
from generation.stage import Asset, Cutout, StageFunction, StepContext
from protocol.gaussians import GaussianCloud
from protocol.tasks import Task, TextTask
from tests.support.fakes import tetrahedron

RUNG = Rung("short", steps=2, size=64, gaussians=8_000, skip_plain=False, back_end="triposr")
"""A quality level with few steps."""

STEPS = ("prompt", "denoise", "denoise", "decode", "cutout", "lift", "splats", "encode")
"""The stages of a text task's steps at `RUNG`."""

STAGES = tuple(dict.fromkeys(STEPS))


def cloud(count: int = 7_000) -> GaussianCloud:
    """A cloud that a validator accepts if it is large enough."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return random.normal(size=shape).astype(np.float32)

    return GaussianCloud(
        positions=normal(count, 3),
        log_scales=normal(count, 3) - 4,
        rotations=normal(count, 4),
        opacity_logits=np.full(count, 4, dtype=np.float32),
        colors_dc=normal(count, 3),
    )


def task(name: str) -> TextTask:
    return TextTask(id=name, prompt=name)


def plan(
    engine: Engine, task: Task, rung: Rung = RUNG, *, latest_start: tuple[float, ...] = ()
) -> Plan:
    """The way of a task, without latest starts unless given."""
    return Plan(rung, engine.route(task, rung), latest_start)


UNSCORED = preset("embedded").model_copy(update={"scoring": ScoringSettings()})
"""The preset whose stages the fakes are, without a scorer."""


class FakeStages:
    """Records what runs, and can hold or break any stage.

    Attributes:
        calls: (stage, thread name) in the order in which they started.
        contexts: What the stages were told, in the same order.
        drawn: Prompts, in the order in which they were encoded.
        faults: What a stage raises, by name.
        cures: Whether dropping caches ends all faults.
        drops: How often caches were dropped.
        result: The cloud that comes out.
        worth: The score of every cloud and the rating of every picture, where these are asked for.
        on_call: Called in the thread of a stage with its name and context, before anything else.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.contexts: list[StepContext] = []
        self.drawn: list[str] = []
        self.faults: dict[str, BaseException] = {}
        self.cures = False
        self.drops = 0
        self.result = cloud()
        self.worth = 0.8
        self.entered: dict[str, threading.Event] = {}
        self.on_call: Callable[[str, StepContext], None] = lambda stage, context: None
        self._held: dict[str, threading.Event] = {}

    def engine(self, settings: GenerationSettings | None = None, **options: Any) -> Engine:
        """An engine with these stages; they need no start."""
        given: dict[str, Any] = {
            "functions": self.functions(),
            "drop_caches": self._drop_caches,
            "remembers": self.remembers,
            "progress": False,
        }
        return Engine(settings or UNSCORED, **(given | options))

    def hold(self, stage: str) -> Callable[[], None]:
        """Makes a stage wait inside its thread; call the result to let it go on."""
        self.entered[stage], self._held[stage] = threading.Event(), threading.Event()
        return self._held[stage].set

    def remembers(self, prompt: str) -> bool:
        """Whether a prompt is among the last 32."""
        return prompt in self.drawn[-32:]

    def names(self) -> list[str]:
        return [stage for stage, _ in self.calls]

    def functions(self) -> Mapping[str, StageFunction]:
        picture = np.zeros((8, 8, 3), np.uint8)
        cutout = Cutout(picture, np.zeros((8, 8, 4), np.uint8), picture)
        results: dict[str, Callable[[Any], Any]] = {
            "prompt": self._begin,
            "denoise": lambda drawing: drawing,
            "decode": lambda drawing: picture,
            "cutout": lambda source: cutout,
            **self._lifting(),
            "encode": _encode,
            "rate": lambda cutout: replace(cutout, rating=self.worth),
            "score": lambda asset: replace(asset, score=Score(self.worth, scorer="a fake")),
        }

        def function(stage: str) -> StageFunction:
            def run(value: Any, context: StepContext) -> Any:
                self._run(stage, context)
                if stage == "decode" and context.seeds:
                    return (picture,) * len(context.seeds)
                if isinstance(value, tuple):
                    return tuple(results[stage](each) for each in value)
                return results[stage](value)

            return run

        return {stage: function(stage) for stage in results}

    def _lifting(self) -> dict[str, Callable[[Any], Any]]:
        """The stages of every back end: each passes something on, the last ones make objects."""
        results: dict[str, Callable[[Any], Any]] = {}
        for back_end in BACK_ENDS.values():
            results |= {stage.name: lambda value: "code" for stage in back_end.stages}
            last = {stage.output: stage.name for stage in back_end.stages}
            results[last["splats"]] = lambda value: self.result
            if "mesh" in last:
                results[last["mesh"]] = lambda value: tetrahedron()
        return results

    def _drop_caches(self) -> None:
        self.drops += 1
        if "drop_caches" in self.faults:
            raise self.faults["drop_caches"]
        if self.cures:
            self.faults.clear()

    def _begin(self, task: TextTask) -> str:
        self.drawn.append(task.prompt)
        return "drawing"

    def _run(self, stage: str, context: StepContext) -> None:
        self.on_call(stage, context)
        self.calls.append((stage, threading.current_thread().name))
        self.contexts.append(context)
        if stage in self._held:
            self.entered[stage].set()
            assert self._held[stage].wait(10)
        if stage in self.faults:
            raise self.faults[stage]


def _encode(cloud: GaussianCloud) -> Asset:
    report = check(cloud)
    if not report.passed:
        raise GenerationError(f"a validator would score the cloud 0: {report.summary()}")
    return Asset(cloud, b"spz", report)
