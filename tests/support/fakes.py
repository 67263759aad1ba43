"""Stand-ins for what is slow or outside: a clock, a generator, a small valid cloud."""

import asyncio
import math
from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image

from generation.errors import GenerationStopped
from generation.pipeline import Generation, StageGate, stages_for
from generation.presets import preset
from generation.scoring.validity import check
from generation.settings import GenerationSettings
from protocol import spz
from protocol.gaussians import GaussianCloud
from protocol.tasks import Task

PRIOR = {
    "text_to_image": 2.0,
    "background": 0.5,
    "scene_code": 1.0,
    "splats": 0.4,
    "encode": 0.1,
}


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


class FakeGenerator:
    """Goes through a task's stages as the pipeline does, making the same ball every time.

    Attributes:
        ran: (task id, stage) of every stage that was started.
        hold_at: A stage in which requests stay until `release` is set.
        error: Raised in `error_at` instead of a result.
        timings: What a generation reports; those of the warm-up at first.
    """

    def __init__(self, prior: Mapping[str, float] | None = None) -> None:
        self.settings: GenerationSettings = preset("embedded")
        self.prior = dict(PRIOR if prior is None else prior)
        self.timings = dict(self.prior)
        self.ran: list[tuple[str, str]] = []
        self.hold_at: str | None = None
        self.holding = asyncio.Event()
        self.release = asyncio.Event()
        self.error_at: str | None = None
        self.error: BaseException | None = None
        self.closed = False

    async def start(self) -> Mapping[str, float]:
        return self.prior

    async def generate(
        self, task: Task, *, deadline: float = math.inf, gate: StageGate | None = None
    ) -> Generation:
        for stage in stages_for(task):
            await asyncio.sleep(0)
            if gate is not None:
                gate(stage)
            self.ran.append((task.id, stage))
            if stage == self.hold_at:
                self.holding.set()
                await self.release.wait()
            if stage == self.error_at and self.error is not None:
                raise self.error
        timings = {stage: self.timings[stage] for stage in stages_for(task)}
        picture = Image.new("RGB", (8, 8))
        return Generation(
            task.id, ball(), ball_spz(), check(ball()), timings, picture, picture.convert("RGBA")
        )

    async def close(self) -> None:
        self.closed = True


def stopped(stage: str) -> GenerationStopped:
    """What the pipeline raises when a deadline has passed."""
    return GenerationStopped(stage, "its deadline passed 0.10 s ago")
