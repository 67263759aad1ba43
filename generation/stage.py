"""The stages: which work a task needs, in which lane, and what its cost depends on. No torch here.

A stage is a value. Plans, lanes, forecast, score log, metrics and documents read this list; what a
stage does is a function with the same name that the engine loads (`StageFunction`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from generation.plan import Output, Part, Rung, Step
from generation.scoring.score import Score
from generation.scoring.validity import ValidityReport
from protocol.gaussians import GaussianCloud
from protocol.images import read_size
from protocol.tasks import ImageTask, Task, TextTask

if TYPE_CHECKING:
    from torch import Tensor

GPU, CUTOUT, SPLATS, CPU, SCORE = "gpu", "cutout", "splats", "cpu", "score"
"""Lanes. The large networks take turns in `gpu`; on CUDA, `cutout`, `splats` and `score` run beside
it, each on a stream of its own; `cpu` needs no device."""

_WORKERS = {GPU: 1, CUTOUT: 1, SPLATS: 1, CPU: 2, SCORE: 1}

LARGE_PIXELS = 1_500_000
"""Decoding and scaling down dominate the cut-out of a picture with more pixels than this."""


@dataclass(frozen=True)
class StepContext:
    """What a stage's function may know beside its input.

    Attributes:
        task: The task.
        rung: The quality level.
        index: Which of its stage's steps this is, from 0.
        seeds: See `Plan.seeds`.
    """

    task: Task
    rung: Rung
    index: int = 0
    seeds: tuple[int | None, ...] = ()


StageFunction = Callable[[Any, StepContext], Any]
"""Takes the result of the step before (the task at first) and returns its own; it blocks."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """What the stage `cutout` makes, for the first stage of a 3D back end.

    Attributes:
        picture: (H, W, 3) uint8 RGB, drawn or given. A given one is scaled down to
            `framing.MAX_SIDE` and shown on grey where it is transparent.
        rgba: (S, S, 4) uint8, the object alone, framed.
        on_grey: (S, S, 3) uint8 RGB, the same on mid-grey.
        rating: How good it is among the pictures of its task, if the stage `rate` has seen it.
        on_device: `on_grey` as a tensor where the networks run; a back end whose device that is
            need not copy it there.
    """

    picture: NDArray[np.uint8]
    rgba: NDArray[np.uint8]
    on_grey: NDArray[np.uint8]
    rating: float | None = None
    on_device: "Tensor | None" = None


@dataclass(frozen=True, eq=False)
class Asset:
    """What the last stage makes of a task that becomes splats.

    Attributes:
        cloud: The Gaussian cloud.
        spz: The cloud as an SPZ file.
        validity: The validator's checks, all passed.
        score: What a validator is expected to say, if the stage `score` has seen it.
    """

    cloud: GaussianCloud
    spz: bytes
    validity: ValidityReport
    score: Score | None = None


@dataclass(frozen=True, eq=False)
class TriangleMesh:
    """What the last stage makes of a task that becomes a mesh: the surface of the same object.

    It is closed, has y up and the pictured side towards +z. The box of the vertices is centred at
    the origin; its largest side is that of the Gaussian cloud.

    Attributes:
        vertices: (V, 3) float32.
        faces: (F, 3) int32 vertex indices, counter-clockwise seen from outside.
        normals: (V, 3) float32 unit vectors, outwards.
        rgb: (V, 3) float32 sRGB colour in 0..1.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    normals: NDArray[np.float32]
    rgb: NDArray[np.float32]


_PICTURE: frozenset[Part] = frozenset({"whole", "picture"})
_OBJECT: frozenset[Part] = frozenset({"whole", "object"})


@dataclass(frozen=True)
class Stage:
    """One kind of work.

    Attributes:
        name: As plans, logs and metrics call it.
        lane: Where it runs.
        cost_key: What its duration depends on, from the task, the rung and whether the engine
            remembers the prompt.
        phase: What the duration of one of its steps depends on besides, from the rung and the
            step's index.
        text_only: Whether image tasks do without it.
        repeats: How many steps of it a plan has.
        output: Which tasks need it, by what they become; None if all do.
        parts: In which plans it is.
        optional: Whether one of its steps is; see `Step.optional`.
        together: Whether one step of it serves all pictures that are drawn together, and takes as
            much longer.
    """

    name: str
    lane: str
    cost_key: Callable[[Task, Rung, bool], str]
    text_only: bool = False
    repeats: Callable[[Rung], int] = lambda rung: 1
    output: Output | None = None
    parts: frozenset[Part] = _OBJECT
    optional: Callable[[Rung, int], bool] = lambda rung, index: False
    together: bool = False
    phase: Callable[[Rung, int], str] | None = None

    def step(self, task: Task, rung: Rung, index: int, pictures: int, remembered: bool) -> Step:
        """Returns one of its steps; see `route`."""
        key = self.cost_key(task, rung, remembered)
        if self.phase is not None:
            key += f":{self.phase(rung, index)}"
        if self.together and pictures > 1:
            key += f":x{pictures}"
        return Step(self.name, self.lane, key, index, optional=self.optional(rung, index))


PROMPT_NEW, PROMPT_REMEMBERED = "prompt:new", "prompt:remembered"


def _prompt_key(task: Task, rung: Rung, remembered: bool) -> str:
    return PROMPT_REMEMBERED if remembered else PROMPT_NEW


def _cutout_key(task: Task, rung: Rung, remembered: bool) -> str:
    source = "drawn"
    if isinstance(task, ImageTask):
        width, height = read_size(task.image)
        source = "large" if width * height > LARGE_PIXELS else "small"
    return f"cutout:{source}" + (":skip_plain" if rung.skip_plain else "")


def _denoising_steps(rung: Rung) -> int:
    return rung.steps


PICTURE_STAGES = (
    Stage("prompt", GPU, _prompt_key, text_only=True, parts=_PICTURE),
    Stage(
        "denoise",
        GPU,
        lambda task, rung, remembered: f"denoise:{rung.size}",
        text_only=True,
        repeats=_denoising_steps,
        parts=_PICTURE,
        together=True,
    ),
    Stage(
        "decode",
        GPU,
        lambda task, rung, remembered: f"decode:{rung.size}",
        text_only=True,
        parts=_PICTURE,
        together=True,
    ),
    Stage("cutout", CUTOUT, _cutout_key, parts=_PICTURE, together=True),
)
"""From a task to a framed cut-out; an image task enters at the last one."""

REFINE = Stage(
    "refine",
    GPU,
    lambda task, rung, remembered: f"refine:{rung.gaussians}",
    repeats=lambda rung: rung.refine_slices,
    output="splats",
    optional=lambda rung, index: True,
)
"""From a Gaussian cloud to one that matches the cut-out better; as many slices as there is time."""

ENCODE = Stage(
    "encode", CPU, lambda task, rung, remembered: f"encode:{rung.gaussians}", output="splats"
)
"""From a Gaussian cloud to a checked SPZ file."""

RATE = Stage(
    "rate",
    SCORE,
    lambda task, rung, remembered: "rate",
    parts=frozenset({"picture"}),
    together=True,
)
"""From a cut-out to the same with a rating. The first candidate is lifted without one."""

SCORE_STAGE = Stage(
    "score",
    SCORE,
    lambda task, rung, remembered: f"score:{task.kind}:{rung.gaussians}",
    output="splats",
    optional=lambda rung, index: True,
)
"""From a checked SPZ file to the same with a score. A file without one is better than none."""


def route(
    stages: tuple[Stage, ...],
    task: Task,
    rung: Rung,
    output: Output = "splats",
    part: Part = "whole",
    *,
    pictures: int = 1,
    remembered: bool = False,
) -> tuple[Step, ...]:
    """Returns the steps that a task takes at a rung.

    Args:
        stages: All stages in order, as `generation.lift.stages_of` gives them.
        task: Text or image.
        rung: The quality level.
        output: What the task becomes.
        part: All the way, or to the rated cut-outs, or from one of them.
        pictures: How many a plan of the part "picture" draws together.
        remembered: Whether the engine still has the encoding of a text task's prompt.
    """
    return tuple(
        stage.step(task, rung, index, pictures, remembered)
        for stage in stages
        if part in stage.parts and stage.output in (None, output)
        if isinstance(task, TextTask) or not stage.text_only
        for index in range(stage.repeats(rung))
    )


def lane_workers(stages: tuple[Stage, ...]) -> Mapping[str, int]:
    """Returns how many steps each lane runs at once."""
    return {stage.lane: _WORKERS[stage.lane] for stage in stages}
