"""The optimisation: random views for the guidance, the known view for the front, step by step."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from generation.lift.dreamgaussian import schedule
from generation.lift.dreamgaussian.cover import cover
from generation.lift.dreamgaussian.densify import Densifier
from generation.lift.dreamgaussian.gaussians import TrainedGaussians
from generation.lift.dreamgaussian.guidance import Guidance
from generation.lift.targets import target_of
from generation.packing import GaussianTensors
from generation.rendering.cameras import Camera, orbit_camera
from generation.rendering.differentiable import rasterize
from generation.scoring.validity import MIN_GAUSSIANS

_COLOUR_WEIGHT, _ALPHA_WEIGHT = 10_000.0, 1_000.0
_ELEVATION_SPREAD, _STEEPEST = 30, 80
_RESET_EVERY, _RESET_OPACITY = 700, 0.01


@dataclass(frozen=True, eq=False)
class KnownView:
    """The picture, and where it was taken from.

    Attributes:
        rgba: (S, S, 4) uint8, the framed cut-out; the camera looks at the origin from the front.
        elevation: Degrees above the horizon.
        distance: From the origin.
        fov: Field of view in degrees.
    """

    rgba: NDArray[np.uint8]
    elevation: float = 0.0
    distance: float = 2.0
    fov: float = 49.1
    _targets: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def framed(cls, rgba: NDArray[np.uint8], *, elevation: float, fov: float) -> "KnownView":
        """One with another field of view, so far away that the object is as large in it."""
        distance = cls.distance * math.tan(math.radians(cls.fov / 2))
        return cls(rgba, elevation, distance / math.tan(math.radians(fov / 2)), fov)

    def camera(self, azimuth: float, elevation: float, size: int) -> Camera:
        """One as far from the origin, somewhere else."""
        return orbit_camera(azimuth, elevation, radius=self.distance, fov=self.fov, size=size)

    def target(self, size: int) -> Tensor:
        """(size, size, 4) float32 on the CPU: colours premultiplied by alpha, and alpha; kept."""
        if size not in self._targets:
            self._targets[size] = target_of(self.rgba, size)
        return self._targets[size]


class Dream:
    """One object on its way, usable after any step.

    All random numbers come from one generator, so that a seed makes one object.

    Args:
        known: The picture.
        guidance: What judges other views; none, and only the front takes shape.
        steps: How many there will be; the schedules depend on it.
        sizes: Pixels per side of rendered views, early, in the middle and late.
        count: Gaussians at the start.
        seed: Of everything that is drawn.
        device: Where it runs.
        most: Gaussians at the end; None for any number.
    """

    def __init__(
        self,
        known: KnownView,
        guidance: Guidance | None,
        *,
        steps: int,
        sizes: tuple[int, int, int],
        count: int,
        seed: int,
        device: torch.device,
        most: int | None = None,
    ) -> None:
        self.steps, self.done = steps, 0
        self._known, self._guidance, self._sizes, self._device = known, guidance, sizes, device
        self._most = most
        self._generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False), torch.no_grad():
            self.gaussians = TrainedGaussians(count, self._generator, device, schedule.pace(steps))
            self._seen = None
            if guidance is not None:
                self._seen = guidance.begin(known.rgba)
                elevation = guidance.elevation(self._seen, known.elevation)
                self._known = replace(known, elevation=elevation)
            self._targets = {size: known.target(size).to(device) for size in set(sizes)}
        self._densifier = Densifier.on(device, steps, most)

    def run(self, steps: int) -> None:
        """Takes up to that many of the steps that are left."""
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(min(steps, self.steps - self.done)):
                drawn = self._generator.get_state()
                try:
                    self._step()
                except Exception:
                    # A step that is taken again, such as for lack of memory, draws the same.
                    self._generator.set_state(drawn)
                    raise
                self.done += 1

    def result(self) -> GaussianTensors:
        """The cloud as it is now.

        Where there are too few Gaussians for a validator, or too few to be seen, their surface is
        covered with discs, see `cover`; else see `TrainedGaussians.finish`.

        Raises:
            GenerationError: A number is not finite, or no surface is left.
        """
        with torch.inference_mode(False):
            finished = self.gaussians.finish(self._most)
            if finished is not None:
                return finished
            return cover(self.gaussians.parameters, max(self._most or 0, MIN_GAUSSIANS))

    def _step(self) -> None:
        share = self.done / self.steps
        progress = schedule.annealing(share)
        size = schedule.resolution(share, self._sizes)
        # Those of a step that failed half way, such as for lack of memory.
        self.gaussians.forget_gradients()
        loss, info = self._known_loss(progress, size), None
        if self._guidance is not None:
            judged, info = self._guided_loss(self._guidance, progress, size)
            loss = loss + judged
        if info is not None:
            self._densifier.before(self.gaussians, self.done, info)
        torch.autograd.backward([loss])
        self.gaussians.step(schedule.position_rate(progress))
        if info is not None:
            self._densifier.after(self.gaussians, self.done, info, self._generator)
            if self.done and self.done % _RESET_EVERY == 0 and share < schedule.LAST_RESET:
                self.gaussians.limit_opacity(_RESET_OPACITY)

    def _known_loss(self, progress: float, size: int) -> Tensor:
        """White behind both; its weight grows while a guidance makes the rough shape."""
        camera = self._known.camera(0.0, self._known.elevation, size)
        colour, coverage, _ = self._draw(camera, white=True)
        target = self._targets[size]
        wanted = target[..., :3] + 1 - target[..., 3:]
        weight = 1.0 if self._guidance is None else progress
        return weight * (
            _COLOUR_WEIGHT * F.mse_loss(colour[0], wanted)
            + _ALPHA_WEIGHT * F.mse_loss(coverage[0], target[..., 3])
        )

    def _guided_loss(
        self, guidance: Guidance, progress: float, size: int
    ) -> tuple[Tensor, dict[str, Any]]:
        known = self._known.elevation
        low, high = -_ELEVATION_SPREAD, _ELEVATION_SPREAD
        low = math.ceil(max(min(low, low - known), -_STEEPEST - known))
        high = math.floor(min(max(high, high - known), _STEEPEST - known))
        azimuth, above = self._draw_integer(-180, 180), self._draw_integer(low, high)
        camera = self._known.camera(azimuth, known + above, size)
        colour, coverage, info = self._draw(camera, white=False)
        pictures = F.interpolate(
            torch.cat([colour, coverage[..., None]], dim=-1).permute(0, 3, 1, 2),
            (guidance.size, guidance.size),
            mode="bilinear",
            antialias=True,
        )
        loss = guidance.loss(
            self._seen,
            pictures,
            azimuths=torch.tensor([math.radians(azimuth)]),
            elevations=torch.tensor([math.radians(above)]),
            time=schedule.noise_time(progress),
            generator=self._generator,
        )
        return loss, info

    def _draw(self, camera: Camera, *, white: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
        view, intrinsics = (
            torch.from_numpy(matrix).float()[None].to(self._device)
            for matrix in (camera.world_to_camera, camera.intrinsics)
        )
        backgrounds = torch.full((1, 3), float(white), device=self._device)
        cloud = self.gaussians.cloud()
        return rasterize(cloud, view, intrinsics, camera.width, camera.height, backgrounds)

    def _draw_integer(self, low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=self._generator))
