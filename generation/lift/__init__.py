"""Cut-out to Gaussian cloud or mesh: the 3D back ends, by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from generation.lift.phases import Phase, phase_at
from generation.plan import Output, Rung
from generation.settings import GenerationSettings
from generation.stage import (
    CPU,
    ENCODE,
    GPU,
    PICTURE_STAGES,
    RATE,
    REFINE,
    SCORE,
    SCORE_STAGE,
    SPLATS,
    Stage,
)


@dataclass(frozen=True)
class BackEnd:
    """One way from a cut-out to a 3D object.

    Attributes:
        stages: What it adds to plans, in order: the first takes a `Cutout`; the last one of output
            "splats" returns `Splats`, the last one of output "mesh", if there is one, a
            `TriangleMesh`.
        loader: Module with `load(settings, models_dir, device)`, which returns a dict of
            stage name to `StageFunction`; imported when an engine starts.
    """

    stages: tuple[Stage, ...]
    loader: str


def _dream_phase(rung: Rung, index: int) -> Phase:
    """The phase in which a slice begins."""
    return phase_at(index * rung.lift_slice / rung.lift_steps)


BACK_ENDS: Mapping[str, BackEnd] = {
    "triposr": BackEnd(
        stages=(
            Stage("lift", GPU, lambda task, rung, remembered: "lift:triposr"),
            Stage(
                "splats",
                SPLATS,
                lambda task, rung, remembered: f"splats:triposr:{rung.gaussians}",
                output="splats",
            ),
            Stage("mesh", SPLATS, lambda task, rung, remembered: "mesh:triposr", output="mesh"),
        ),
        loader="generation.lift.triposr.loading",
    ),
    "triposplat": BackEnd(
        # No mesh: it makes Gaussians, and no surface.
        stages=(
            Stage("prepare", CPU, lambda task, rung, remembered: "prepare", output="splats"),
            Stage("features", GPU, lambda task, rung, remembered: "features", output="splats"),
            Stage(
                "flow",
                GPU,
                lambda task, rung, remembered: "flow",
                repeats=lambda rung: rung.lift_steps,
                output="splats",
                optional=lambda rung, index: phase_at(index / rung.lift_steps) == "late",
            ),
            Stage(
                "gaussians",
                GPU,
                lambda task, rung, remembered: f"gaussians:{rung.gaussians}",
                output="splats",
            ),
            Stage(
                "splats",
                SPLATS,
                lambda task, rung, remembered: f"splats:triposplat:{rung.gaussians}",
                output="splats",
            ),
        ),
        loader="generation.lift.triposplat.loading",
    ),
    "dreamgaussian": BackEnd(
        # No mesh, for the same reason.
        stages=(
            Stage("prepare", CPU, lambda task, rung, remembered: "prepare", output="splats"),
            Stage(
                "dream",
                GPU,
                lambda task, rung, remembered: "dream",
                repeats=lambda rung: ceil(rung.lift_steps / rung.lift_slice),
                output="splats",
                phase=_dream_phase,
                optional=lambda rung, index: _dream_phase(rung, index) == "late",
            ),
            Stage(
                "splats",
                SPLATS,
                lambda task, rung, remembered: f"splats:dreamgaussian:{rung.gaussians}",
                output="splats",
            ),
        ),
        loader="generation.lift.dreamgaussian.loading",
    ),
}


def outputs_of(back_end: str) -> frozenset[Output]:
    """Returns what tasks can become with a back end."""
    return frozenset(s.output for s in BACK_ENDS[back_end].stages if s.output is not None)


def no_output(back_end: str, output: Output) -> tuple[str, str]:
    """Says that a back end cannot make something: the problem, and what to do about it."""
    makes = " and ".join(_IN_WORDS[name][0] for name in sorted(outputs_of(back_end)))
    formats = " or ".join(_IN_WORDS[name][1] for name in sorted(outputs_of(back_end)))
    others = " or ".join(name for name in BACK_ENDS if output in outputs_of(name))
    return (
        f"the 3D back end {back_end} makes {makes}, but no {_IN_WORDS[output][0]}",
        f"ask for {formats}, or choose another back end with --lift.backend {others}",
    )


_IN_WORDS: Mapping[Output, tuple[str, str]] = {
    "splats": ("Gaussian splats (ply, spz)", "ply or spz"),
    "mesh": ("mesh (glb, obj)", "glb or obj"),
}


def stages_of(settings: GenerationSettings, back_end: str) -> tuple[Stage, ...]:
    """Returns all stages in order, with the lanes that the preset's device gives them.

    Off CUDA, splats and scores take turns with the other networks: there is no second stream to run
    them on.
    """
    refine = (REFINE,) if settings.refine.steps else ()
    lift = (*BACK_ENDS[back_end].stages, *refine, ENCODE)
    if settings.scoring.scorer == "none":
        stages = (*PICTURE_STAGES, *lift)
    else:
        stages = (*PICTURE_STAGES, RATE, *lift, SCORE_STAGE)
    if "cuda" in settings.device:
        return stages
    return tuple(replace(s, lane=GPU) if s.lane in (SPLATS, SCORE) else s for s in stages)
