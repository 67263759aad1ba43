"""DreamGaussian as a back end: its stages, from `prepare` to `splats`."""

from collections.abc import Mapping
from pathlib import Path

import torch

from generation.acceleration.streams import wait_for_stream
from generation.lift.dreamgaussian.denoiser import ViewDenoiser
from generation.lift.dreamgaussian.dream import Dream, KnownView
from generation.lift.dreamgaussian.guidance import Guidance, fov_of, scale_of
from generation.lift.dreamgaussian.zero123 import Zero123
from generation.packing import Splats
from generation.rendering import gsplat_backend
from generation.scoring.validity import MIN_GAUSSIANS
from generation.settings import GenerationSettings
from generation.stage import Cutout, StageFunction, StepContext
from generation.weights.store import locate_models
from protocol.errors import SetupError


def load(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> Mapping[str, StageFunction]:
    """Loads the guidance and returns the functions of the stages.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        device: Where Gaussians are optimised.

    Raises:
        SetupError: A file is missing or wrong, the device is CUDA and gsplat does not run on it, or
            the settings fit no object.
    """
    return functions_of(settings, load_guidance(settings, models_dir, device), device)


def load_guidance(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> Guidance | None:
    """Loads what judges the views that the picture does not show; None without guidance."""
    own = settings.dreamgaussian
    folder = locate_models(settings, models_dir, image_only=True).lift
    if own.guidance == "none":
        return None
    how = {"device": device, "dtype": getattr(torch, own.dtype), "scale": scale_of(own)}
    if own.guidance == "denoiser":
        return ViewDenoiser.from_pretrained(folder, **how)
    guidance = Zero123.from_pretrained(folder, **how)
    if settings.accelerate:
        guidance.record()
    return guidance


def functions_of(
    settings: GenerationSettings, guidance: Guidance | None, device: torch.device
) -> Mapping[str, StageFunction]:
    """Returns the functions of the stages, by name.

    Args:
        settings: The preset.
        guidance: On the preset's device, if there is one.
        device: Where Gaussians are optimised.

    Raises:
        SetupError: The device is CUDA and gsplat does not run on it, or a quality level has fewer
            Gaussians than a validator wants.
    """
    own = settings.dreamgaussian
    _require_gaussians(settings)
    if device.type == "cuda" and not gsplat_backend.is_usable():
        raise SetupError(
            "dreamgaussian renders with gsplat, which does not run here",
            fix="make install EXTRAS=gpu, or choose another back end: --lift.backend triposr",
        )

    def prepare(cutout: Cutout, context: StepContext) -> KnownView:
        known = KnownView.framed(cutout.rgba, elevation=own.elevation, fov=fov_of(own))
        # Here and not in the first slice: there the GPU would wait for it.
        for size in own.sizes:
            known.target(size)
        return known

    def dream(value: KnownView | Dream, context: StepContext) -> Dream:
        dream = begin(value, context) if isinstance(value, KnownView) else value
        dream.run(context.rung.lift_slice)
        # Waits, so that the time and the errors of this stage are its own.
        wait_for_stream(device)
        return dream

    def begin(known: KnownView, context: StepContext) -> Dream:
        rung, seed = context.rung, context.task.seed
        return Dream(
            known,
            guidance,
            steps=rung.lift_steps,
            sizes=own.sizes,
            count=min(own.count, rung.gaussians),
            seed=own.seed if seed is None else seed,
            device=device,
            most=rung.gaussians,
        )

    def splats(dream: Dream, context: StepContext) -> Splats:
        return dream.result().to_splats()

    return {"prepare": prepare, "dream": dream, "splats": splats}


def _require_gaussians(settings: GenerationSettings) -> None:
    for rung in settings.ladder:
        if rung.gaussians < MIN_GAUSSIANS:
            raise SetupError(
                f"the quality level {rung.name} has {rung.gaussians:,} Gaussians at most, and a "
                f"validator gives a score of 0 to clouds of fewer than {MIN_GAUSSIANS:,}",
                fix=f"give the level {rung.name} in --rungs {MIN_GAUSSIANS} gaussians or more",
            )
