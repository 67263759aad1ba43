"""TripoSplat as a back end: its stages, from `prepare` to `splats`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from generation.acceleration.streams import wait_for_stream
from generation.errors import NoObject
from generation.lift.triposplat.accelerated import accelerate, hold_in_eight_bits
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.gaussians import PointGaussians
from generation.lift.triposplat.model import TripoSplat
from generation.lift.triposplat.prepare import prepare
from generation.lift.triposplat.sampling import Sampler, SamplerState
from generation.lift.triposplat.splats import to_gaussians
from generation.packing import Splats
from generation.settings import GenerationSettings
from generation.stage import Cutout, StageFunction, StepContext
from generation.weights.store import locate_models
from protocol.errors import SetupError, TaskError
from protocol.tasks import ImageTask


@dataclass(frozen=True, eq=False)
class Sampling:
    """What the stages `features` and `flow` pass on.

    Attributes:
        sampler: Holds the picture's tokens.
        state: The latent after the steps so far.
    """

    sampler: Sampler
    state: SamplerState


def load(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> Mapping[str, StageFunction]:
    """Loads the networks and returns the functions of the stages.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        device: Where the networks go.

    Raises:
        SetupError: A file is missing or wrong.
    """
    return functions_of(settings, *load_networks(settings, models_dir, device))


def load_networks(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> tuple[TripoSplat, PictureEncoders]:
    """Loads the networks alone; see `load`."""
    folder = locate_models(settings, models_dir, image_only=True).lift
    dtype = getattr(torch, settings.triposplat.dtype)
    model = TripoSplat.from_pretrained(folder, device=device, dtype=dtype)
    return model, PictureEncoders.from_pretrained(folder, device=device, dtype=dtype)


def functions_of(
    settings: GenerationSettings,
    model: TripoSplat,
    encoders: PictureEncoders,
    *,
    backend: str = "inductor",
) -> Mapping[str, StageFunction]:
    """Returns the functions of the stages, by name.

    Args:
        settings: The preset.
        model: On the preset's device. Narrowed and accelerated in place, if the preset asks for it.
        encoders: On the same device. Accelerated in place, if the preset asks for it.
        backend: What `torch.compile` compiles them with.

    Raises:
        SetupError: A quality level has fewer Gaussians than the model makes of one point.
    """
    own = settings.triposplat
    _require_gaussians(settings, model.config.gaussian.gaussians_per_point)
    if own.eight_bit:
        hold_in_eight_bits(model)
    if settings.accelerate:
        points = own.max_gaussians // model.config.gaussian.gaussians_per_point
        accelerate(model, encoders, points, backend=backend)

    def seed_of(context: StepContext) -> int:
        return own.seed if context.task.seed is None else context.task.seed

    def prepared(cutout: Cutout, context: StepContext) -> NDArray[np.uint8]:
        try:
            return prepare(cutout.rgba, canvas=encoders.picture_size)
        except NoObject as error:
            if isinstance(context.task, ImageTask):
                raise TaskError(f"{error}; send a picture of one object") from error
            raise

    def features(picture: NDArray[np.uint8], context: StepContext) -> Sampling:
        # On the CPU: one seed gives the same noise on every device.
        generator = torch.Generator().manual_seed(seed_of(context))
        sampler = Sampler(
            model.flow,
            *encoders(picture, generator),
            steps=context.rung.lift_steps,
            guidance=own.guidance,
            shift=own.shift,
        )
        sampling = Sampling(sampler, sampler.start(generator))
        # Waits, so that the time and the errors of this stage are its own.
        wait_for_stream(model.flow.device)
        return sampling

    def flow(sampling: Sampling, context: StepContext) -> Sampling:
        done = replace(sampling, state=sampling.sampler.step(sampling.state))
        wait_for_stream(model.flow.device)
        return done

    def gaussians(sampling: Sampling, context: StepContext) -> PointGaussians:
        # Late steps are optional: the state may be one of them.
        latent, count = sampling.sampler.finish(sampling.state), context.rung.gaussians
        made = model.decoder.decode(latent, count, seed_of(context))
        wait_for_stream(latent.device)
        return made

    def splats(made: PointGaussians, context: StepContext) -> Splats:
        return to_gaussians(made).to_splats()

    return {
        "prepare": prepared,
        "features": features,
        "flow": flow,
        "gaussians": gaussians,
        "splats": splats,
    }


def _require_gaussians(settings: GenerationSettings, least: int) -> None:
    for rung in settings.ladder:
        if rung.gaussians < least:
            raise SetupError(
                f"the quality level {rung.name} has {rung.gaussians} Gaussians at most, "
                f"TripoSplat makes {least} of one point",
                fix=f"give --triposplat.max_gaussians, and every gaussians in --rungs, {least} or "
                "more",
            )
