"""What an engine is asked to do and what it reports: pure data that can cross a process.

A request becomes a `Plan`: steps in order, each with the lane that it needs and the latest moment
at which starting it still makes sense. Moments are seconds left of the request's time, because two
processes share no clock. `StepEvent`s come back as the steps run.
"""

from dataclasses import dataclass, field
from typing import Literal

Output = Literal["splats", "mesh"]
"""What a task becomes: a Gaussian cloud, or a triangle mesh of the same object."""

Part = Literal["whole", "picture", "object"]
"""How much of the way a plan takes: from the task to the end; from the task to rated cut-outs; or
from a cut-out to the end. Candidates are drawn by the second and lifted by the third."""


@dataclass(frozen=True)
class Rung:
    """A quality level of a preset, resolved: what one generation at this level uses.

    Attributes:
        name: As logs and metrics call it.
        steps: Denoising steps of the picture.
        size: Side of the picture in pixels.
        gaussians: Most Gaussians in the cloud.
        skip_plain: Cut the object out without a network when the picture's border is plain.
        back_end: What lifts the picture to 3D: a name in `generation.lift.BACK_ENDS`.
        lift_steps: Denoising or optimisation steps of the back end; 0 if it takes none.
        lift_slice: How many of them run at a time.
        refine_slices: Steps of the stage `refine`; 0 at all levels but the best.
    """

    name: str
    steps: int
    size: int
    gaussians: int
    skip_plain: bool
    back_end: str
    lift_steps: int = 0
    lift_slice: int = 1
    refine_slices: int = 0

    @property
    def in_words(self) -> str:
        """The level with its numbers, for people."""
        lift = f", {self.lift_steps} steps in 3D" if self.lift_steps else ""
        return (
            f"{self.name} ({self.steps} steps of a {self.size} px picture{lift}, at most "
            f"{self.gaussians:,} Gaussians)"
        )


@dataclass(frozen=True)
class Step:
    """One non-preemptive piece of work in a lane.

    Attributes:
        stage: Name of its stage.
        lane: Name of the lane that it occupies.
        cost_key: What its duration is learned under; steps with one key take equally long.
        index: Which one it is of its stage's steps, from 0: a picture has several of `denoise`.
        optional: Whether the plan goes on with what the step before made if this one fails, or if
            there is no time for it.
    """

    stage: str
    lane: str
    cost_key: str
    index: int = 0
    optional: bool = False


@dataclass(frozen=True)
class Plan:
    """The way of one request at one rung.

    Attributes:
        rung: The quality level.
        steps: In order; each needs the result of the one before.
        latest_start: Seconds left of the request's time at which each step must have started: a
            step that still waits then is skipped and the request is given up. Empty: no limits.
        limit: Seconds that each step may run before its engine is suspected to hang. Empty: none.
        seeds: Of the pictures that a plan of the part "picture" draws together; empty in others,
            which draw one with the task's own seed.
    """

    rung: Rung
    steps: tuple[Step, ...]
    latest_start: tuple[float, ...] = ()
    limit: tuple[float, ...] = ()
    seeds: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        for name in ("latest_start", "limit"):
            count = len(getattr(self, name))
            if count not in (0, len(self.steps)):
                raise ValueError(f"{name} has {count} values for {len(self.steps)} steps")


StepEventKind = Literal["started", "finished", "failed", "skipped"]


@dataclass(frozen=True)
class StepEvent:
    """What happened to a step.

    Attributes:
        kind: "started"; "finished" and "failed" carry the seconds run; "skipped" means that the
            step was never started, because its latest start passed or the request was cancelled.
        position: Index of the step in its plan.
        step: The step.
        ran_s: Seconds that it occupied its lane; 0 unless finished or failed.
        waited_s: Seconds that it waited for its lane.
        retried: Whether it ran a second time, without caches, after memory had run out.
        fatal: Whether the engine cannot be used any more.
        error: One line, if it failed or was skipped.
    """

    kind: StepEventKind
    position: int
    step: Step
    ran_s: float = 0.0
    waited_s: float = 0.0
    retried: bool = False
    fatal: bool = False
    error: str = field(default="", compare=False)


Turn = tuple[float, int]
"""Place of a request in every lane: its deadline, less its head start if it has one; then its
arrival. The smallest goes first."""
