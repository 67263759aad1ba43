"""The stages in order: a task in, an asset out, with deadlines, cancellation and timings."""

import asyncio
import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from PIL import Image
from tqdm import tqdm

from generation.errors import EngineDead, GenerationEnded, GenerationError, GenerationStopped
from generation.old_lanes import lanes_for
from generation.pictures.framing import composite_on_grey, shrink
from generation.recovery import attempt
from generation.scoring.validity import ValidityReport, check
from generation.settings import GenerationSettings
from protocol.errors import SetupError, TaskError
from protocol.gaussians import GaussianCloud
from protocol.images import decode_image
from protocol.tasks import ImageTask, Task, TextTask

if TYPE_CHECKING:
    # Loads torch, which a program that only reads settings can do without.
    from generation.stages import Stages

T = TypeVar("T")
_Pictures = tuple[Image.Image, Image.Image, Image.Image]

STAGES = ("text_to_image", "background", "scene_code", "splats", "encode")
GPU_STAGES = frozenset({"text_to_image", "scene_code", "splats"})
"""Stages that use the device most of their time; whoever plans counts them as taking turns."""
_LOADING_STEPS = 4
# Different prompts, so that the second, which is timed, finds no remembered embedding.
_WARM_UP = tuple(TextTask(id="warm-up", prompt=p, seed=0) for p in ("a brown chair", "a red car"))


def stages_for(task: Task) -> tuple[str, ...]:
    """Names the stages that a task goes through; an image task skips the first."""
    return STAGES if isinstance(task, TextTask) else STAGES[1:]


class StageGate(Protocol):
    """Asked in the event loop right before each stage starts, after any waiting."""

    def __call__(self, stage: str) -> None:
        """Returns to let the stage start, or raises GenerationStopped."""


class EventListener(Protocol):
    """Told in the event loop what happens to a task."""

    def __call__(self, event: str, details: Mapping[str, object]) -> None:
        """Receives `stage_started`, `stage_finished` (with `seconds`) or `stage_failed`."""


@dataclass(frozen=True, eq=False)
class Generation:
    """What became of a task.

    Attributes:
        task_id: Id of the task.
        cloud: The Gaussian cloud.
        spz: The cloud as an SPZ file.
        validity: The validator's checks, all passed.
        timings: Seconds that each stage took, without waiting, in the order they ran.
        image: RGB, drawn or given; a given one is scaled down to `framing.MAX_SIDE`, and shown
            on grey where it is transparent.
        cutout: RGBA, what TripoSR saw before it was put on grey.
    """

    task_id: str
    cloud: GaussianCloud
    spz: bytes
    validity: ValidityReport
    timings: Mapping[str, float]
    image: Image.Image
    cutout: Image.Image


class Generator(Protocol):
    """What makes assets; `GenerationPipeline` is the one, tests bring others."""

    settings: GenerationSettings

    async def start(self) -> Mapping[str, float]:
        """Loads and warms up; returns seconds by stage as a first estimate."""

    async def generate(
        self, task: Task, *, deadline: float = math.inf, gate: StageGate | None = None
    ) -> Generation:
        """Makes an asset."""

    async def close(self) -> None:
        """Ends the threads."""


class GenerationPipeline:
    """Generates in this process, every stage in its lane.

    While one request is drawn, another's background is removed and a third's cloud is encoded; on
    CUDA a fourth's splats are made. Where requests compete for a lane, the oldest goes first.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        clock: Monotonic clock in seconds, for deadlines and timings.
        on_event: Told of every stage.
        progress: Whether `start` draws a progress bar on stderr; None draws it on a terminal.
        stages: Stages that are loaded already.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        *,
        models_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_event: EventListener | None = None,
        progress: bool | None = None,
        stages: "Stages | None" = None,
    ) -> None:
        self.settings = settings
        self._models_dir = models_dir
        self._clock = clock
        self._on_event = on_event
        self._progress = progress
        self._stages = stages
        self._lanes = lanes_for(settings.device)
        self._arrival = itertools.count()
        self._cause_of_death: str | None = None

    async def start(self) -> Mapping[str, float]:
        """Loads the networks and generates twice, so that the first request meets a warm engine.

        Returns:
            Seconds by stage of the second generation.

        Raises:
            SetupError: Something is missing, or the warm-up failed.
        """
        total = _LOADING_STEPS + len(_WARM_UP) * len(STAGES)
        disable = None if self._progress is None else not self._progress
        with tqdm(total=total, disable=disable, leave=False, unit="step") as bar:

            def tick(stage: str) -> None:
                bar.set_description_str(stage)
                bar.update()

            if self._stages is None:
                load = partial(_load_stages, self.settings, self._models_dir, tick)
                self._stages = await self._lanes["scene_code"].run(-1, load, before=lambda: None)
            try:
                for task in _WARM_UP:
                    result = await self.generate(task, gate=tick)
            except (GenerationError, EngineDead) as error:
                raise SetupError(
                    f"preset {self.settings.name} failed its warm-up: {error}",
                    fix="see the log above; `python -m scripts.benchmark pipeline --preset "
                    f"{self.settings.name}` repeats it alone",
                ) from error
        # Libraries leave a million objects that stay; going over them would hold a request up.
        await asyncio.to_thread(gc.collect)
        gc.freeze()
        return result.timings

    async def generate(
        self, task: Task, *, deadline: float = math.inf, gate: StageGate | None = None
    ) -> Generation:
        """Takes a task through its stages.

        Cancellation and the deadline are honoured between stages; a stage that runs is not
        interrupted, and a cancelled caller does not wait for it.

        Args:
            task: Text or image.
            deadline: No stage is started at or after this time on the pipeline's clock.
            gate: Asked before each stage.

        Raises:
            GenerationStopped: The deadline or the gate said no.
            GenerationError: This task failed; the engine goes on.
            TaskError: The image of the task cannot be decoded.
            EngineDead: No further task can be served.
        """
        stages = self._stages
        if stages is None:
            raise RuntimeError("GenerationPipeline.generate was called before start")
        request = _Request(task, next(self._arrival), deadline, gate)
        try:
            return await self._all_stages(request, stages)
        except GenerationEnded as error:
            error.timings = request.timings
            raise

    async def close(self) -> None:
        """Waits for running stages and ends the threads; the networks are let go."""
        for lane in set(self._lanes.values()):
            await lane.close()
        self._stages = None
        gc.unfreeze()

    async def _all_stages(self, request: "_Request", stages: "Stages") -> Generation:
        step, task = partial(self._stage, request, stages.drop_caches), request.task
        source: Any = task
        if isinstance(task, TextTask):
            source = await step("text_to_image", stages.text_to_image, task.prompt, task.seed)
        image, cutout, on_grey = await step("background", _cut_out, stages, source)
        code = await step("scene_code", stages.scene_code, on_grey)
        cloud = await step("splats", stages.splats, code)
        spz, validity = await step("encode", _encode, stages, cloud)
        return Generation(task.id, cloud, spz, validity, request.timings, image, cutout)

    async def _stage(
        self,
        request: "_Request",
        drop_caches: Callable[[], None],
        stage: str,
        work: Callable[..., T],
        *arguments: Any,
    ) -> T:
        def begin() -> None:
            self._require_alive()
            late = self._clock() - request.deadline
            if late >= 0:
                raise GenerationStopped(stage, f"its deadline passed {late:.2f} s ago")
            if request.gate is not None:
                request.gate(stage)
            self._emit("stage_started", request, stage)

        run = partial(self._run, stage, partial(work, *arguments), drop_caches)
        try:
            result, seconds = await self._lanes[stage].run(request.order, run, before=begin)
        except (GenerationError, TaskError, EngineDead) as error:
            self._emit("stage_failed", request, stage, error=str(error))
            raise
        request.timings[stage] = seconds
        self._emit("stage_finished", request, stage, seconds=seconds)
        return result

    def _run(
        self, stage: str, work: Callable[[], T], drop_caches: Callable[[], None]
    ) -> tuple[T, float]:
        """Runs in a worker thread: the work, timed, its errors sorted."""
        start = self._clock()
        try:
            result = attempt(stage, work, drop_caches)
        except EngineDead as error:
            self._cause_of_death = str(error)
            raise
        return result, self._clock() - start

    def _require_alive(self) -> None:
        if self._cause_of_death is not None:
            raise EngineDead(self._cause_of_death)

    def _emit(self, event: str, request: "_Request", stage: str, **details: object) -> None:
        if self._on_event is not None:
            self._on_event(event, {"task": request.task.log_id, "stage": stage, **details})


@dataclass(frozen=True, eq=False)
class _Request:
    task: Task
    order: int
    deadline: float
    gate: StageGate | None
    timings: dict[str, float] = field(default_factory=dict)


def _load_stages(
    settings: GenerationSettings, models_dir: Path | None, report: Callable[[str], None]
) -> "Stages":
    # The import alone takes seconds, so it too belongs in the worker thread.
    from generation.stages import assemble, load_networks

    return assemble(settings, load_networks(settings, models_dir, report))


def _cut_out(stages: "Stages", source: Image.Image | ImageTask) -> _Pictures:
    # The picture, its cut-out, and that on grey: another stage would do it while the GPU waits.
    image = shrink(decode_image(source.image)) if isinstance(source, ImageTask) else source
    cutout = stages.background(image)
    shown = composite_on_grey(image) if image.mode == "RGBA" else image
    return shown, cutout, composite_on_grey(cutout)


def _encode(stages: "Stages", cloud: GaussianCloud) -> tuple[bytes, ValidityReport]:
    spz = stages.encode(cloud)
    report = check(cloud, wire_bytes=len(spz))
    if not report.passed:
        raise GenerationError(f"a validator would score the cloud 0: {report.summary()}")
    return spz, report
