"""Refinement as a stage behind any back end, in slices that each leave a usable cloud."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from generation.acceleration.streams import wait_for_stream
from generation.lift.refine.refinement import Refinement
from generation.packing import GaussianTensors, Splats
from generation.rendering import gsplat_backend
from generation.settings import GenerationSettings
from generation.stage import Cutout, StageFunction, StepContext, TriangleMesh
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud


@dataclass(frozen=True, eq=False)
class Refining:
    """What a back end's stages pass on, with the cut-out that refinement needs.

    Attributes:
        cutout: The picture.
        value: What the back end's last stage returned; `Splats` once all have run.
        refinement: Of these splats, once it has begun.
    """

    cutout: Cutout
    value: Any
    refinement: Refinement | None = None

    def splats(self) -> Splats:
        """The cloud as far as it is refined."""
        made: Splats = self.value
        if self.refinement is None:
            return made
        refined = self.refinement.result()
        return made if refined is self.refinement.start else refined.to_splats()


def refining(
    functions: Mapping[str, StageFunction], settings: GenerationSettings, device: torch.device
) -> Mapping[str, StageFunction]:
    """Adds the stage `refine` to a back end's functions, and lets these carry the cut-out to it.

    Args:
        functions: Of the back end.
        settings: The preset, with steps of refinement.
        device: Where clouds are refined.

    Raises:
        SetupError: The device is CUDA and gsplat does not run on it.
    """
    own = settings.refine
    if device.type == "cuda" and not gsplat_backend.is_usable():
        raise SetupError(
            "refinement renders with gsplat, which does not run here",
            fix="make install EXTRAS=gpu, or leave refinement out: --refine.steps 0",
        )

    def carrying(function: StageFunction) -> StageFunction:
        def run(value: Any, context: StepContext) -> Any:
            if not context.rung.refine_slices:
                return function(value, context)
            cutout = value if isinstance(value, Cutout) else value.cutout
            made = function(value if value is cutout else value.value, context)
            return made if isinstance(made, TriangleMesh) else Refining(cutout, made)

        return run

    def refine(value: Refining, context: StepContext) -> Refining:
        refinement = value.refinement
        if refinement is None:
            start = tensors_of(value.value.cloud, device)
            refinement = Refinement(
                start,
                value.cutout.rgba,
                steps=own.steps,
                size=own.size,
                fov=own.fov,
                elevation=own.elevation,
                spread=own.spread,
            )
        refinement.run(own.slice)
        # Waits, so that the time and the errors of this stage are its own.
        wait_for_stream(device)
        return replace(value, refinement=refinement)

    return {name: carrying(function) for name, function in functions.items()} | {"refine": refine}


def tensors_of(cloud: GaussianCloud, device: torch.device) -> GaussianTensors:
    """Copies a cloud to a device."""
    arrays = (
        cloud.positions,
        cloud.log_scales,
        cloud.rotations,
        cloud.opacity_logits,
        cloud.colors_dc,
    )
    return GaussianTensors(*(torch.from_numpy(array).to(device) for array in arrays))
