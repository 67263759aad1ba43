"""The optimisation of a finished cloud against its picture, in steps that can end at any time."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.lift.refine.pose import FIELD_OF_VIEW, Lens, first_pose, view_of
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.cameras import DISTANCE, FOV, orbit_camera
from generation.rendering.device_cloud import DeviceCloud
from protocol.gaussians import SH_C0

CAMERA_SHARE, SHAPE_SHARE = 0.2, 0.7
"""Shares of the steps: the camera alone, then the shape with it; colours have the rest."""

WORST_SILHOUETTE = 0.03
"""Mean squared error of coverage beyond which the camera was not found, and nothing is changed."""

LEAST_GAIN = 0.1
"""Decibels; with less, the start is the result."""

_HELD = ((80, 15), (130, 15), (180, 15), (230, 15), (280, 15), (0, 65))
"""Azimuth and elevation, in degrees, of the views that are held to the starting cloud."""

_HELD_WEIGHT = 0.05
_NODES = 4
"""Of the lattice of displacements, along each axis."""
_SMOOTHNESS, _SMALLNESS = 1.0, 0.1
_CAMERA_RATE, _LATTICE_RATE, _TONE_RATE, _COLOUR_RATE = 0.01, 0.004, 0.005, 0.01
_BLOCKS = 16
"""Per side of the picture; a quarter of them is not optimised, but judges the result."""


class Refinement:
    """A cloud on its way to what the picture shows.

    What is fitted has few parameters, because one picture says little of the other sides: the
    camera, a smooth displacement on a coarse lattice, the tone of all colours together; and in the
    end the colours of what the picture shows.

    Args:
        start: A finished cloud, in the subnet's frame.
        rgba: (S, S, 4) uint8, the framed cut-out that the cloud was made from.
        steps: How many there will be, at least 1.
        size: Pixels per side at which pictures are compared.
        fov: Field of view of the picture's camera in degrees, as far as it is known.
        camera: The picture's, if it is known: lens, and pose (4,) as in `pose`.

    Attributes:
        start: A copy of the start.
        steps, done: How many steps there will be, and have been.
        pose: (4,) where the picture is thought to be taken from.
        silhouette: Mean squared error of coverage once the camera was found.
        gain: Decibels by which the last result matched the judging part of the picture better.
    """

    def __init__(
        self,
        start: GaussianTensors,
        rgba: NDArray[np.uint8],
        *,
        steps: int,
        size: int,
        fov: float = FIELD_OF_VIEW,
        camera: tuple[Lens, Tensor] | None = None,
    ) -> None:
        self.steps, self.done = steps, 0
        with torch.inference_mode(False), torch.no_grad():
            # Copies, because tensors of inference mode can have no gradients.
            self.start = GaussianTensors(*(tensor.clone() for tensor in start.tensors()))
            self._cloud = _placed(self.start)
            device = self.start.positions.device
            self._target = target_of(rgba, size).to(device)
            self._lens = Lens.of(size, fov) if camera is None else camera[0]
            pose = (
                first_pose(self._cloud, self._target[..., 3], self._lens)
                if camera is None
                else camera[1].to(device, copy=True)
            )
            self.pose = nn.Parameter(pose)
            self._lattice = nn.Parameter(torch.zeros(1, 3, *(_NODES,) * 3, device=device))
            self._tone = nn.Parameter(torch.zeros(2, 3, device=device))
            self._colours = nn.Parameter(torch.zeros_like(self._cloud.rgb))
            self._grid = (self._cloud.positions / (0.53 * LARGEST_SIDE))[None, :, None, None]
            self._judging = judging_blocks(size).to(device)
            self._held = _held_views(device)
            lens = Lens.of(size, FOV)
            self._held_lens = lens
            self._held_pictures = [lens.draw(self._cloud, view)[..., 3] for view in self._held]
        self._camera_steps = 0 if camera is not None else math.ceil(CAMERA_SHARE * steps)
        self._shape_end = self._camera_steps + math.ceil(SHAPE_SHARE * steps)
        self._fitted = camera is not None
        self._before, self.gain, self.silhouette = math.inf, 0.0, math.inf
        self._optimiser = torch.optim.Adam(
            [
                {"params": [self.pose], "rate": _CAMERA_RATE},
                {"params": [self._lattice], "rate": _LATTICE_RATE},
                {"params": [self._tone], "rate": _TONE_RATE},
                {"params": [self._colours], "rate": _COLOUR_RATE},
            ]
        )

    def run(self, steps: int) -> None:
        """Takes up to that many of the steps that are left."""
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(min(steps, self.steps - self.done)):
                if self.done == self._camera_steps:
                    self._begin_shape()
                elif self.done == self._shape_end:
                    with torch.no_grad():
                        self._shaped = self._with_error()
                if self.done < self._camera_steps or self._fitted:
                    self._step()
                self.done += 1

    def result(self) -> GaussianTensors:
        """The cloud that matches the picture best: now, before its colours changed, or at first."""
        if self.done <= self._camera_steps or not self._fitted:
            return self.start
        with torch.inference_mode(False), torch.no_grad():
            error, moved = min(self._shaped, self._with_error(), key=lambda pair: pair[0])
            self.gain = 10 * math.log10(self._before / error)
            if self.gain < LEAST_GAIN:
                return self.start
            low, high = torch.aminmax(moved.positions, dim=0)
            scale = LARGEST_SIDE / (high - low).max()
            return replace(
                self.start,
                positions=(moved.positions - (low + high) / 2) * scale,
                log_scales=self.start.log_scales + scale.log(),
                colors_dc=(moved.rgb - 0.5) / SH_C0,
            )

    def _silhouette_error(self, cloud: DeviceCloud, pose: Tensor) -> Tensor:
        found = self._lens.draw(cloud, view_of(pose))
        return (found - self._target)[..., 3].square().mean()

    def _begin_shape(self) -> None:
        """The camera has been fitted: is it good enough, and how good is the start?"""
        with torch.no_grad():
            self.silhouette = self._silhouette_error(self._cloud, self.pose).item()
            self._fitted = self.silhouette < WORST_SILHOUETTE
            self._before = self._judged(self._cloud)
            self._shaped = self._before, self._cloud

    def _with_error(self) -> tuple[float, DeviceCloud]:
        """The cloud as it is now, and how it matches what is not optimised."""
        moved = self._moved()
        return self._judged(moved), moved

    def _judged(self, cloud: DeviceCloud) -> float:
        """Mean squared error in the part of the picture that is not optimised."""
        error = (self._lens.draw(cloud, view_of(self.pose)) - self._target).square()
        return error[self._judging].mean().item()

    def _moved(self) -> DeviceCloud:
        displacement = F.grid_sample(self._lattice, self._grid, align_corners=True)
        gain, bias = self._tone
        return replace(
            self._cloud,
            positions=self._cloud.positions + displacement[0, :, :, 0, 0].T,
            rgb=self._cloud.rgb * (1 + gain) + bias + self._colours,
        )

    def _step(self) -> None:
        if self.done < self._camera_steps:
            phase, first, last = 0, 0, self._camera_steps
            loss = self._silhouette_error(self._cloud, self.pose)
        else:
            in_shape = self.done < self._shape_end
            phase = 1 if in_shape else 2
            first, last = (
                (self._camera_steps, self._shape_end) if in_shape else (self._shape_end, self.steps)
            )
            loss = self._loss()
        left = 1 - (self.done - first) / (last - first)
        pose, lattice, tone, colours = self._optimiser.param_groups
        for group, in_phases, share in (
            (pose, (0, 1), 1.0 if phase == 0 else 0.15),
            (lattice, (1,), 1.0),
            (tone, (1,), 1.0),
            (colours, (2,), 1.0),
        ):
            group["lr"] = group["rate"] * share * (0.1 + 0.9 * left) if phase in in_phases else 0.0
        self._optimiser.zero_grad()
        torch.autograd.backward([loss])
        self._optimiser.step()

    def _loss(self) -> Tensor:
        moved = self._moved()
        error = (self._lens.draw(moved, view_of(self.pose)) - self._target).square()
        number = self.done % len(self._held)
        held = self._held_lens.draw(moved, self._held[number])[..., 3]
        bends = [self._lattice.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4)]
        return (
            error[~self._judging].mean()
            + _HELD_WEIGHT * (held - self._held_pictures[number]).square().mean()
            + _SMOOTHNESS * torch.stack(bends).sum()
            + _SMALLNESS * self._lattice.square().mean()
        )


def target_of(rgba: NDArray[np.uint8], size: int) -> Tensor:
    """A cut-out as (size, size, 4) float32: colours premultiplied by alpha, and alpha."""
    pixels = torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)
    small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0)


def _placed(cloud: GaussianTensors) -> DeviceCloud:
    return DeviceCloud(
        positions=cloud.positions,
        scales=cloud.log_scales.exp(),
        rotations=cloud.rotations,
        opacities=cloud.opacity_logits.sigmoid(),
        rgb=cloud.colors_dc * SH_C0 + 0.5,
    )


def judging_blocks(size: int) -> Tensor:
    """(size, size) bool: the quarter of the picture that is not optimised, spread over it."""
    block = torch.arange(size) * _BLOCKS // size
    return (block[:, None] + 2 * block) % 4 == 0


def _held_views(device: torch.device) -> list[Tensor]:
    cameras = [orbit_camera(a, e, radius=DISTANCE * 1.6 / 1.5, fov=FOV, size=8) for a, e in _HELD]
    return [torch.from_numpy(camera.world_to_camera).float().to(device) for camera in cameras]
