"""Stages that do what a test tells them, in the pipeline's own threads."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from generation.stages import Stages
from protocol.gaussians import GaussianCloud
from protocol.tasks import TextTask


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


class FakeStages:
    """Records what runs, and can hold or break any stage.

    Attributes:
        calls: (stage, thread name) in the order in which they started.
        faults: What a stage raises, by name.
        cures: Whether dropping caches ends all faults.
        drops: How often caches were dropped.
        result: The cloud that comes out.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.drawn: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.cures = False
        self.drops = 0
        self.result = cloud()
        self.entered: dict[str, threading.Event] = {}
        self._held: dict[str, threading.Event] = {}

    def hold(self, stage: str) -> Callable[[], None]:
        """Makes a stage wait inside its thread; call the result to let it go on."""
        self.entered[stage], self._held[stage] = threading.Event(), threading.Event()
        return self._held[stage].set

    def names(self) -> list[str]:
        return [stage for stage, _ in self.calls]

    def stages(self) -> Stages:
        return Stages(
            text_to_image=self._draw,
            background=lambda image: self._run("background", image.convert("RGBA")),
            scene_code=lambda _: self._run("scene_code", "code"),
            splats=lambda _: self._run("splats", self.result),
            encode=lambda _: self._run("encode", b"spz"),
            drop_caches=self._drop_caches,
        )

    def _drop_caches(self) -> None:
        self.drops += 1
        if "drop_caches" in self.faults:
            raise self.faults["drop_caches"]
        if self.cures:
            self.faults.clear()

    def _draw(self, prompt: str, _seed: int | None) -> Image.Image:
        self.drawn.append(prompt)
        image: Image.Image = self._run("text_to_image", Image.new("RGB", (8, 8)))
        return image

    def _run(self, stage: str, result: Any) -> Any:
        self.calls.append((stage, threading.current_thread().name))
        if stage in self._held:
            self.entered[stage].set()
            assert self._held[stage].wait(10)
        if stage in self.faults:
            raise self.faults[stage]
        return result
