"""Stand-ins for what is slow or outside: a clock, an engine, a small valid cloud."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from generation.errors import EngineDead, GenerationStopped
from generation.lift import no_output, outputs_of, stages_of
from generation.plan import Output, Part, Plan, Rung, Step, StepEvent, Turn
from generation.presets import preset
from generation.result import Generation
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.settings import BackEndName, GenerationSettings, LiftSettings, ScoringSettings
from generation.stage import Asset, Cutout, TriangleMesh, lane_workers, route
from protocol import spz
from protocol.errors import TaskError
from protocol.gaussians import GaussianCloud
from protocol.tasks import ImageTask, Task, TextTask

SECONDS = {
    "prompt": 0.4,
    "denoise": 0.3,
    "decode": 0.4,
    "cutout": 0.5,
    "lift": 1.0,
    "splats": 0.4,
    "encode": 0.1,
    "mesh": 2.0,
    "rate": 0.1,
    "score": 0.2,
    # Of TripoSplat alone.
    "prepare": 0.1,
    "features": 0.2,
    "flow": 0.1,
    "gaussians": 0.3,
    # Of DreamGaussian alone.
    "dream": 0.1,
}
"""What each step of the fake engine is said to take; a text task of the preset embedded: 5.2 s."""

STAGES = ("prompt", "denoise", "decode", "cutout", "lift", "splats", "encode")
"""The stages of a text task that becomes splats."""


class Clock:
    """A clock that only moves when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@cache
def ball(count: int = 8000) -> GaussianCloud:
    """A sphere of upright discs that passes a validator's data checks."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rotations = rng.normal(size=(count, 4))
    rotations /= np.linalg.norm(rotations, axis=1, keepdims=True)
    return GaussianCloud(
        positions=(0.8 * directions).astype(np.float32),
        log_scales=np.full((count, 3), -4.0, np.float32),
        rotations=rotations.astype(np.float32),
        opacity_logits=np.full(count, 3.0, np.float32),
        colors_dc=rng.normal(size=(count, 3)).astype(np.float32),
    )


@cache
def ball_spz() -> bytes:
    """The ball as an SPZ file."""
    return spz.encode(ball())


@cache
def tetrahedron() -> TriangleMesh:
    """A mesh of four grey triangles."""
    corners = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], np.float32)
    faces = np.array([(0, 1, 2), (0, 3, 1), (0, 2, 3), (1, 3, 2)], np.int32)
    normals = (corners / np.sqrt(3.0)).astype(np.float32)
    return TriangleMesh(0.8 * corners, faces, normals, np.full((4, 3), 0.5, np.float32))


class FakeEngine:
    """Goes through the steps of a plan as an engine does, making the same ball every time.

    Nothing takes time unless told; what its events report is up to the test. There are no lanes:
    every request goes on as soon as it can.

    Attributes:
        seconds: What a step of each stage is reported to take, by stage.
        takes_time: Whether a step takes these seconds on the event loop's clock.
        ran: (task id, stage) of every step that was started.
        hold_at: A stage in which requests stay until `release` is set; "return" holds them after
            their last step.
        held_task: Id of the only task that is held, if not all are.
        error_at: A stage that raises `error`; one that is optional is then left out.
        threads_end: Whether `close` finds all threads ended.

    Args:
        seconds: See the attribute; `SECONDS` when None.
        name: Of the engine.
        back_end: What lifts pictures to 3D.
        worth: The score of each object and the rating of each picture, by the task with its seed;
            without, nothing is scored.
    """

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        *,
        name: str = "fake",
        back_end: BackEndName = "triposr",
        worth: Callable[[Task], float] | None = None,
    ) -> None:
        self.name = name
        self.machine = "a fake"
        self.worth = worth
        scoring = ScoringSettings(scorer="none" if worth is None else "embedded")
        embedded = preset("embedded")
        lift = LiftSettings(backend=back_end)
        self.settings: GenerationSettings = embedded.model_copy(
            update={"scoring": scoring, "lift": lift}
        )
        self.ladder = self.settings.ladder
        self.outputs = outputs_of(back_end)
        self.stages = stages_of(self.settings, back_end)
        self.lanes = lane_workers(self.stages)
        self.seconds = dict(SECONDS if seconds is None else seconds)
        self.takes_time = False
        self.warm_ups: list[Mapping[str, float]] = []
        self.ran: list[tuple[str, str]] = []
        self.plans: list[Plan] = []
        self.hold_at: str | None = None
        self.held_task: str | None = None
        self.holding = asyncio.Event()
        self.release = asyncio.Event()
        self.error_at: str | None = None
        self.error: BaseException | None = None
        self.threads_end = True
        self.closed = False

    async def start(self) -> None:
        pass

    async def warm_up(self) -> Mapping[str, float]:
        if self.warm_ups:
            return self.warm_ups.pop(0)
        tasks = (TextTask(id="t", prompt="p"), ImageTask(id="i", image=picture()))
        steps = [
            step
            for task in tasks
            for rung in self.ladder
            for output in self.outputs
            for step in self.route(task, rung, output)
        ]
        keys = {step.cost_key: self.seconds[step.stage] for step in steps}
        return keys | {"prompt:remembered": self.seconds["prompt"], "rate": self.seconds["rate"]}

    def route(
        self,
        task: Task,
        rung: Rung,
        output: Output = "splats",
        part: Part = "whole",
        pictures: int = 1,
    ) -> tuple[Step, ...]:
        if output not in self.outputs:
            raise TaskError("; ".join(no_output(rung.back_end, output)))
        return route(self.stages, task, rung, output, part, pictures=pictures)

    async def run(
        self,
        task: Task,
        plan: Plan,
        *,
        start: Cutout | None = None,
        seconds_left: float,
        turn: Turn,
        on_event: Callable[[StepEvent], None],
        on_made: Callable[[Generation], None] = lambda made: None,
    ) -> Generation:
        self.plans.append(plan)
        timings: dict[str, float] = {}
        scored = True
        for position, step in enumerate(plan.steps):
            await asyncio.sleep(0)
            if step.optional:
                on_made(self._generation(task, plan, timings, start, scored=False))
            on_event(StepEvent("started", position, step))
            self.ran.append((task.id, step.stage))
            ran = self.seconds[step.stage]
            thread = asyncio.ensure_future(self._work(task.id, step.stage))
            try:
                await asyncio.shield(thread)
            except asyncio.CancelledError:
                # The thread goes on unobserved, and its end is reported.
                end = StepEvent("finished", position, step, ran_s=ran)
                thread.add_done_callback(partial(_report, on_event, end))
                raise
            if step.stage == self.error_at and self.error is not None:
                fatal, error = isinstance(self.error, EngineDead), str(self.error)
                on_event(StepEvent("failed", position, step, ran, fatal=fatal, error=error))
                if fatal or not step.optional:
                    raise self.error
                scored = False
                continue
            timings[step.stage] = timings.get(step.stage, 0.0) + ran
            on_event(StepEvent("finished", position, step, ran_s=ran))
        await self._work(task.id, "return")
        return self._generation(task, plan, timings, start, scored=scored)

    def _generation(
        self,
        task: Task,
        plan: Plan,
        timings: Mapping[str, float],
        start: Cutout | None,
        *,
        scored: bool,
    ) -> Generation:
        pixels = np.zeros((8, 8, 4), np.uint8)
        worth = self.worth(task) if scored and self.worth is not None else None
        seen = start or Cutout(pixels[..., :3], pixels, pixels[..., :3], rating=worth)
        score = None if worth is None else Score(worth, {"object": worth}, "fake")
        made: Asset | TriangleMesh | tuple[Cutout, ...]
        match plan.steps[-1].stage:
            case "mesh":
                made = tetrahedron()
            case "rate":
                made = tuple(self._rated(task, seed, seen) for seed in plan.seeds)
            case _:
                made = Asset(ball(), ball_spz(), check(ball()), score)
        return Generation(task.id, plan.rung.name, made, timings, seen)

    def _rated(self, task: Task, seed: int | None, seen: Cutout) -> Cutout:
        drawn: Task = task.model_copy(update={"seed": seed})
        return replace(seen, rating=None if self.worth is None else self.worth(drawn))

    async def close(self) -> bool:
        self.closed = True
        return self.threads_end

    async def _work(self, task_id: str, stage: str) -> None:
        if self.takes_time and stage in self.seconds:
            await asyncio.sleep(self.seconds[stage])
        if stage == self.hold_at and self.held_task in (None, task_id):
            self.holding.set()
            await self.release.wait()


class Remembering(FakeEngine):
    """Keeps the tasks that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks: list[Any] = []

    async def run(self, task: Any, *args: Any, **arguments: Any) -> Any:
        self.tasks.append(task)
        return await super().run(task, *args, **arguments)


@cache
def picture() -> bytes:
    """A small PNG."""
    file = BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def stopped(stage: str) -> GenerationStopped:
    """What an engine raises when the latest start of a step has passed."""
    return GenerationStopped(stage, "0.10 s are left")


def _report(
    on_event: Callable[[StepEvent], None], event: StepEvent, thread: "asyncio.Future[None]"
) -> None:
    if not thread.cancelled():
        on_event(event)
