"""The optimisation of a finished cloud against its picture, in steps that can end at any time."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.lift.refine.carve import carve
from generation.lift.refine.pose import (
    FIELD_OF_VIEW,
    Lens,
    first_pose,
    unlikeliness,
    view_of,
)
from generation.lift.refine.tone import match_tone
from generation.lift.targets import target_of
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.cameras import DISTANCE, FOV, orbit_camera
from generation.rendering.device_cloud import DeviceCloud
from generation.scoring.validity import MIN_GAUSSIANS
from protocol.gaussians import SH_C0

CAMERA_SHARE, SHAPE_SHARE = 0.3, 0.4
"""Shares of the steps: the camera alone, then the shape; single colours have the rest."""

WORST_SILHOUETTE = 0.06
"""Mean squared error of coverage beyond which the camera was not found, and nothing is changed."""

LEAST_GAIN = 0.7
"""Decibels; with less, the start is the result."""

_LEAST_OUTLINE_GAIN = 0.3
"""Decibels of coverage; with less, the shape stays as it is."""

_NO_ERROR = 1e-12
"""The least mean squared error: between the judging blocks, a thin object leaves nothing to see."""

_MOST_CARVED = 0.4
"""Share of the Gaussians beyond which the silhouette is not believed."""

_CARVED_SIZE = 256
_REACH = 0.04
"""Share of the picture's side; what is further outside the silhouette is removed, not moved."""

_SAMPLE = 8_000
"""Gaussians that the camera and the shape are fitted with on a CPU."""
_GROWTH = 0.38
"""Power of the thinning by which the sizes of those grow."""

_HELD = ((80, 15), (130, 15), (180, 15), (230, 15), (280, 15), (0, 65))
"""Azimuth and elevation, in degrees, of the views that are held to the starting cloud."""

_HELD_WEIGHT = 0.05
_NODES = 4
"""Of the lattice of displacements, along each axis."""
_SMOOTHNESS, _SMALLNESS = 5.0, 1.0
_SHARE, _KNOWN_SHARE = 0.3, 1.0
"""Of the displacement that is made, with a fitted and with a known camera. A fitted one is never
exact, and a small step towards a wrong place costs less than one towards the right place gains."""
_CAMERA_RATE, _LATTICE_RATE, _COLOUR_RATE = 0.01, 0.006, 0.003
_BLOCKS = 16
"""Per side of the picture; a quarter of them is not optimised, but judges the result."""


class Refinement:
    """A cloud on its way to what the picture shows.

    What is fitted has few parameters, because one picture says little of the other sides: the
    camera; a smooth displacement on a coarse lattice; tone and light of all colours together; and
    in the end the colours of what the picture shows. Between the first two, Gaussians outside the
    silhouette move to its edge, or go: however the other sides look, nothing can be there.

    Args:
        start: A finished cloud, in the subnet's frame.
        rgba: (S, S, 4) uint8, the framed cut-out that the cloud was made from.
        steps: How many there will be, at least 1.
        size: Pixels per side at which pictures are compared.
        fov: Field of view of the picture's camera in degrees, as far as it is known.
        elevation: Of its camera above the horizon in degrees, as pictures usually have it.
        spread: Standard deviation of this, in degrees.
        camera: The picture's, if it is known: lens, and pose (4,) as in `pose`.

    Attributes:
        start: A copy of the start.
        steps, done: How many steps there will be, and have been.
        pose: (4,) where the picture is thought to be taken from.
        silhouette: Mean squared error of coverage once the camera was found.
        carved: Share of the Gaussians that lay outside the silhouette.
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
        elevation: float = 0.0,
        spread: float = 10.0,
        camera: tuple[Lens, Tensor] | None = None,
    ) -> None:
        self.steps, self.done = steps, 0
        self.silhouette, self.carved, self.gain = math.inf, 0.0, 0.0
        self._prior = elevation, spread
        self._share = _SHARE if camera is None else _KNOWN_SHARE
        with torch.inference_mode(False), torch.no_grad():
            # Copies, because tensors of inference mode can have no gradients.
            self.start = GaussianTensors(*(tensor.clone() for tensor in start.tensors()))
            self._cloud = _placed(self.start)
            device = self.start.positions.device
            self._outline = target_of(rgba, _CARVED_SIZE)[..., 3].to(device)
            self._target = target_of(rgba, size).to(device)
            self._sample = thinned(self._cloud)
            self._lens = Lens.of(size, fov) if camera is None else camera[0]
            pose = (
                first_pose(self._sample, self._target[..., 3], self._lens, *self._prior)
                if camera is None
                else camera[1].to(device, copy=True)
            )
            self._judging = judging_blocks(size).to(device)
            self._held, self._held_lens = _held_views(device), Lens.of(size // 2, FOV)
        self.pose = nn.Parameter(pose)
        self._lattice = nn.Parameter(torch.zeros(1, 3, *(_NODES,) * 3, device=device))
        self._kept = torch.arange(len(self._cloud.positions), device=device)
        self._camera_steps = 0 if camera is not None else math.ceil(CAMERA_SHARE * steps)
        self._shape_end = self._camera_steps + math.ceil(SHAPE_SHARE * steps)
        self._candidates: list[_Candidate] = []
        self._held_pictures: dict[int, Tensor] = {}
        self._optimiser = torch.optim.Adam([self.pose])

    def run(self, steps: int) -> None:
        """Takes up to that many of the steps that are left."""
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(min(steps, self.steps - self.done)):
                if self.done == self._camera_steps:
                    self._begin_shape()
                elif self.done == self._shape_end and self._candidates:
                    self._end_shape()
                elif self.done == self._shape_end + 1 and self._candidates:
                    self._begin_colours()
                elif self.done < self._camera_steps or self._candidates:
                    self._step()
                self.done += 1

    def result(self) -> GaussianTensors:
        """The cloud that matches the picture best, of all that it has been so far."""
        if not self._candidates:
            return self.start
        with torch.inference_mode(False), torch.no_grad():
            start, *others = [*self._candidates, self._candidate(self._now(), self._kept)]
            best = min(others, key=_error)
            self.gain = 10 * math.log10(start.error / best.error)
            if self.gain < LEAST_GAIN:
                return self.start
            low, high = torch.aminmax(best.cloud.positions, dim=0)
            scale = LARGEST_SIDE / (high - low).max()
            kept = GaussianTensors(*(tensor[best.kept] for tensor in self.start.tensors()))
            return replace(
                kept,
                positions=(best.cloud.positions - (low + high) / 2) * scale,
                log_scales=kept.log_scales + scale.log(),
                colors_dc=(best.cloud.rgb - 0.5) / SH_C0,
            )

    # A phase begins anew if memory ran out on the way, so it changes nothing before its end.

    @torch.no_grad()
    def _begin_shape(self) -> None:
        """The camera has been fitted: if it is good enough, what it cannot have seen goes."""
        silhouette = self._silhouette_error(self._sample).item()
        if silhouette >= WORST_SILHOUETTE:
            self.silhouette = silhouette
            return
        cloud, kept, sample = self._cloud, self._kept, self._sample
        candidates = [self._candidate(cloud, kept)]
        positions, moved = carve(cloud.positions, self._outline, self._lens, view_of(self.pose))
        carved = (moved > 0).float().mean().item()
        if carved <= _MOST_CARVED:
            near = moved <= _REACH
            if near.sum() >= MIN_GAUSSIANS:
                kept = near.nonzero()[:, 0]
            cloud = chosen(replace(cloud, positions=positions), kept)
            sample = thinned(cloud)
            candidates.append(self._candidate(cloud, kept))
        before = self._outline_error(sample)
        self.silhouette, self.carved, self._before = silhouette, carved, before
        self._cloud, self._kept, self._sample = cloud, kept, sample
        self._candidates = candidates
        self._optimiser = torch.optim.Adam([self._lattice])

    @torch.no_grad()
    def _end_shape(self) -> None:
        candidates = [*self._candidates, self._candidate(self._now(), self._kept)]
        best = min(candidates, key=_error)
        colours = nn.Parameter(torch.zeros_like(best.cloud.rgb))
        self._cloud, self._kept, self._colours = best.cloud, best.kept, colours
        self._candidates = candidates

    @torch.no_grad()
    def _begin_colours(self) -> None:
        """Tone and light at once; then the colours of single Gaussians follow."""
        toned = match_tone(self._cloud, self._draw, self._target, ~self._judging)
        candidates = [*self._candidates, self._candidate(toned, self._kept)]
        self._cloud = min(candidates, key=_error).cloud
        self._candidates = candidates
        self._optimiser = torch.optim.Adam([self._colours])

    def _step(self) -> None:
        if self.done < self._camera_steps:
            first, last, rate, loss_of = 0, self._camera_steps, _CAMERA_RATE, self._camera_loss
        elif self.done < self._shape_end:
            first, last = self._camera_steps, self._shape_end
            rate, loss_of = _LATTICE_RATE, self._shape_loss
        else:
            first, last = self._shape_end, self.steps
            rate, loss_of = _COLOUR_RATE, self._colour_loss
        (group,) = self._optimiser.param_groups
        group["lr"] = rate * (1 - 0.9 * (self.done - first) / (last - first))
        self._optimiser.zero_grad()
        torch.autograd.backward([loss_of()])
        self._optimiser.step()

    def _camera_loss(self) -> Tensor:
        return self._silhouette_error(self._sample) + unlikeliness(self.pose, *self._prior)

    def _shape_loss(self) -> Tensor:
        """Of outlines alone: a wrong light must not move anything."""
        moved = self._moved(self._sample)
        error = (self._draw(moved) - self._target)[..., 3].square()
        number = self.done % len(self._held)
        if number not in self._held_pictures:
            # Not all at once: on a CPU, that would make one step several times as long.
            with torch.no_grad():
                self._held_pictures[number] = self._held_outline(self._sample, number)
        held = self._held_outline(moved, number)
        bends = [self._lattice.diff(n=2, dim=axis).square().mean() for axis in (2, 3, 4)]
        return (
            error[~self._judging].mean()
            + _HELD_WEIGHT * (held - self._held_pictures[number]).square().mean()
            + _SMOOTHNESS * torch.stack(bends).sum()
            + _SMALLNESS * self._lattice.square().mean()
        )

    def _held_outline(self, cloud: DeviceCloud, number: int) -> Tensor:
        return self._held_lens.draw(cloud, self._held[number])[..., 3]

    def _colour_loss(self) -> Tensor:
        shown = self._draw(replace(self._cloud, rgb=self._cloud.rgb + self._colours))
        return (shown - self._target).square()[~self._judging].mean()

    def _now(self) -> DeviceCloud:
        """The cloud with what has been fitted since this phase began."""
        if self.done > self._shape_end:
            return replace(self._cloud, rgb=self._cloud.rgb + self._colours)
        # What the picture does not confirm where it was not optimised is not done.
        gain = 10 * math.log10(self._before / self._outline_error(self._moved(self._sample)))
        return self._moved(self._cloud, self._share) if gain >= _LEAST_OUTLINE_GAIN else self._cloud

    def _moved(self, cloud: DeviceCloud, share: float = 1.0) -> DeviceCloud:
        places = (cloud.positions / (0.53 * LARGEST_SIDE))[None, :, None, None]
        displacement = F.grid_sample(self._lattice, places, align_corners=True)[0, :, :, 0, 0].T
        return replace(cloud, positions=cloud.positions + share * displacement)

    def _draw(self, cloud: DeviceCloud) -> Tensor:
        """As the picture's camera sees it, (S, S, D + 1)."""
        return self._lens.draw(cloud, view_of(self.pose.detach()))

    def _candidate(self, cloud: DeviceCloud, kept: Tensor) -> "_Candidate":
        error = (self._draw(cloud) - self._target).square()[self._judging].mean().item()
        return _Candidate(max(error, _NO_ERROR), kept, cloud)

    def _silhouette_error(self, cloud: DeviceCloud) -> Tensor:
        found = self._lens.draw(cloud, view_of(self.pose))
        return (found - self._target)[..., 3].square().mean()

    def _outline_error(self, cloud: DeviceCloud) -> float:
        """Mean squared error of coverage in the part of the picture that is not optimised."""
        error = (self._draw(cloud) - self._target)[..., 3].square()
        return max(error[self._judging].mean().item(), _NO_ERROR)


class _Candidate(NamedTuple):
    """A cloud, which Gaussians of the start it has, and its error where it was not optimised."""

    error: float
    kept: Tensor
    cloud: DeviceCloud


def _error(candidate: _Candidate) -> float:
    return candidate.error


def thinned(cloud: DeviceCloud) -> DeviceCloud:
    """Fewer and larger Gaussians of a cloud on a CPU, where each one takes time to draw."""
    count = len(cloud.positions)
    if cloud.positions.device.type != "cpu" or count <= _SAMPLE:
        return cloud
    generator = torch.Generator().manual_seed(0)
    fewer = chosen(cloud, torch.randperm(count, generator=generator)[:_SAMPLE])
    return replace(fewer, scales=fewer.scales * (count / _SAMPLE) ** _GROWTH)


def chosen(cloud: DeviceCloud, index: Tensor) -> DeviceCloud:
    """The Gaussians at an index."""
    return DeviceCloud(
        positions=cloud.positions[index],
        scales=cloud.scales[index],
        rotations=cloud.rotations[index],
        opacities=cloud.opacities[index],
        rgb=cloud.rgb[index],
    )


def _placed(cloud: GaussianTensors) -> DeviceCloud:
    return DeviceCloud(
        positions=cloud.positions,
        scales=cloud.log_scales.exp(),
        rotations=cloud.rotations,
        opacities=cloud.opacity_logits.sigmoid(),
        rgb=cloud.colors_dc * SH_C0 + 0.5,
    )


def judging_blocks(size: int) -> Tensor:
    """(size, size) bool: the quarter of the picture that is not optimised, in diagonal lines.

    So no object is thin enough to lie between them, unless it is a diagonal itself.
    """
    block = torch.arange(size) * _BLOCKS // size
    return (block[:, None] + block) % 4 == 0


def _held_views(device: torch.device) -> list[Tensor]:
    cameras = [orbit_camera(a, e, radius=DISTANCE * 1.6 / 1.5, fov=FOV, size=8) for a, e in _HELD]
    return [torch.from_numpy(camera.world_to_camera).float().to(device) for camera in cameras]
