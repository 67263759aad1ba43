"""A TripoSR scene as flat Gaussians lying on its surface, in the subnet's frame."""

import math
from typing import Any

import torch
from torch import Tensor

from generation.acceleration.graphs import Captured, GraphPool
from generation.errors import GenerationError
from generation.lift.triposr import TripoSR
from generation.lift.triposr.field import SceneField
from generation.lift.triposr.lattice import read_lattice, settle
from generation.lift.triposr.surface import Crossings, Surface, find_crossings, surface_at
from generation.packing import LARGEST_SIDE, GaussianTensors, Splats, quantise
from generation.scoring.validity import MIN_GAUSSIANS
from generation.settings import SplatSettings
from protocol.gaussians import SH_C0, GaussianCloud

_MOST_COUNTS = 8
"""Numbers of Gaussians, one for each rung, that are recorded."""

TO_SUBNET = (1, 2, 0)
"""TripoSR's world has z up and shows the input image from +x with +y to the right; the subnet has
y up and looks from +z with +x to the right. So (x, y, z) becomes (y, z, x)."""

# A disc near an edge of the object sticks out beyond it. Whether it does is asked _REACH standard
# deviations from its centre and _BELOW of that under its plane; if so, it is narrowed.
_REACH, _BELOW, _NARROWED = 2.0, 0.3, 0.5


def extract_cloud(
    model: TripoSR,
    scene_code: Tensor,
    settings: SplatSettings,
    *,
    count: int | None = None,
    seed: int | None = None,
) -> GaussianCloud:
    """Makes the cloud of `extract_gaussians` in main memory."""
    return extract_gaussians(model, scene_code, settings, count=count, seed=seed).to_cloud()


def extract_gaussians(
    model: TripoSR,
    scene_code: Tensor,
    settings: SplatSettings,
    *,
    count: int | None = None,
    seed: int | None = None,
) -> GaussianTensors:
    """Makes one cloud; for many clouds of one network, a `GaussianExtractor` is faster."""
    return GaussianExtractor(model, settings).gaussians(scene_code, count=count, seed=seed)


class GaussianExtractor:
    """Covers the surfaces of a network's scenes with evenly spread flat discs.

    A cloud is in the subnet's frame, centred per axis on the box of its centres, whose largest side
    is `LARGEST_SIDE`. Only one thread at a time may call a recording extractor.

    Args:
        model: The network whose decoder reads the scene codes.
        settings: Threshold, lattice and disc shape; defaults for what the methods are given.
        record: Record what does not depend on the shape of the surface as CUDA graphs: reading the
            coarse lattice, covering the surface and quantising the cloud. The model has a fused
            decoder then.
    """

    def __init__(self, model: TripoSR, settings: SplatSettings, *, record: bool = False) -> None:
        self._model, self._settings = model, settings
        self._level = math.log(settings.threshold)
        self._read: Any = self._read_lattice
        self._cover: Any = self._cover_surface
        self._quantise: Any = quantise
        if record:
            pool = GraphPool()
            self._read = Captured("search for the surface", self._read, pool=pool)
            self._cover = Captured("splats", self._cover, pool=pool, limit=_MOST_COUNTS)
            self._quantise = Captured("quantising", quantise, pool=pool, limit=_MOST_COUNTS)

    @torch.inference_mode()
    def gaussians(
        self, scene_code: Tensor, *, count: int | None = None, seed: int | None = None
    ) -> GaussianTensors:
        """Makes a cloud.

        Args:
            scene_code: (3, C, H, W) triplane on the model's device.
            count: Most Gaussians; the settings' `max_gaussians` when None.
            seed: Seed of the surface sampling, 0..2**64 - 1; the settings' seed when None.

        Returns:
            At most `count` Gaussians, identical for identical input on one device.

        Raises:
            GenerationError: The density field is not finite, has no surface, or has one so small
                that fewer Gaussians than a validator accepts fit on it.
        """
        settings = self._settings
        most = settings.max_gaussians if count is None else count
        field = SceneField(self._model, scene_code)
        lattice, cells, numbers = self._read(*field.tensors)
        lattice, cells, found = settle(
            lattice, cells, numbers, settings.threshold, settings.min_component
        )
        crossings = find_crossings(
            field,
            lattice,
            cells,
            found,
            count=most,
            level=self._level,
            seed=settings.seed if seed is None else seed,
        )
        sampled = len(crossings.start)
        if sampled < MIN_GAUSSIANS <= most:
            raise GenerationError(
                f"the surface found is too small: {sampled} Gaussians fit on it, a validator wants "
                f"{MIN_GAUSSIANS}; raise splats.resolution (now {settings.resolution})"
            )
        # Fewer than `most` come from tiny surfaces only: too rare for a recording of their own.
        cover = self._cover if sampled == most else self._cover_surface
        return GaussianTensors(*cover(*crossings.tensors(), *field.tensors))

    @torch.inference_mode()
    def splats(
        self, scene_code: Tensor, *, count: int | None = None, seed: int | None = None
    ) -> Splats:
        """Makes a cloud as `gaussians` does, and copies it to main memory, quantised as well.

        Raises:
            GenerationError: See `gaussians`.
            ValueError: A number is not finite.
            CodecError: SPZ cannot hold the cloud.
        """
        made = self.gaussians(scene_code, count=count, seed=seed)
        most = self._settings.max_gaussians if count is None else count
        pack = self._quantise if len(made.positions) == most else quantise
        return made.to_splats(pack(*made.tensors()))

    def _read_lattice(self, *scene: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        field = SceneField(self._model, *scene)
        return read_lattice(field, self._settings.resolution, self._level)

    def _cover_surface(
        self,
        start: Tensor,
        direction: Tensor,
        values: Tensor,
        area: Tensor,
        step: Tensor,
        *scene: Tensor,
    ) -> tuple[Tensor, ...]:
        """The attributes of `GaussianTensors` from `Crossings` and `SceneField.tensors`."""
        settings = self._settings
        field = SceneField(self._model, *scene)
        surface = surface_at(field, Crossings(start, direction, values, area, step), self._level)
        rotations = disc_rotations(_to_subnet(surface.normals))
        sigma = settings.disc_sigma * surface.spacing
        rgb, narrowing = _colour_and_fit(field, surface, rotations, sigma, self._level)
        _, scale = _centre_and_scale(surface.points)
        positions = surface.points - settings.inset / scale * surface.normals
        centre, scale = _centre_and_scale(positions)
        thin = torch.full_like(narrowing[:, :1], settings.thickness)
        log_scales = (torch.cat([narrowing, thin], dim=-1) * sigma * scale).log()
        return (
            _to_subnet((positions - centre) * scale),
            log_scales,
            rotations,
            torch.full_like(log_scales[:, 0], settings.opacity_logit),
            (rgb - 0.5) / SH_C0,
        )


def disc_rotations(normals: Tensor) -> Tensor:
    """Quaternions that turn a disc's thin axis, local z, to the given normals.

    A disc has no back, so normals are first flipped to z >= 0. That keeps w at or above
    sqrt(1/2), where SPZ, which stores only x y z and rebuilds w, is precise: the worst error of a
    normal after a round trip is about 1 degree instead of 11.

    Args:
        normals: (N, 3) float32 unit vectors.

    Returns:
        (N, 4) float32 unit quaternions w x y z, the shortest rotation from +z.
    """
    x, y, z = torch.where(normals[:, 2:] < 0, -normals, normals).unbind(dim=-1)
    quaternions = torch.stack((1 + z, -y, x, torch.zeros_like(z)), dim=-1)
    return torch.nn.functional.normalize(quaternions, dim=-1)


def _colour_and_fit(
    field: SceneField, surface: Surface, rotations: Tensor, sigma: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    """Asks the field for the discs' colours, and which of them stick out beyond an edge.

    Returns:
        RGB (N, 3) in 0..1; by how much to multiply the two in-plane scales (N, 2).
    """
    count = len(surface.points)
    reach = _REACH * sigma * _to_model(_in_plane_axes(rotations))
    below = surface.points - _BELOW * _REACH * sigma * surface.normals
    points = torch.cat([surface.points, *(below + reach), *(below - reach)])
    log_density, rgb = field.query(points)
    outside = (log_density[count:] < level).view(2, 2, count).any(dim=0)
    return rgb[:count], torch.where(outside, _NARROWED, 1.0).T


def _in_plane_axes(rotations: Tensor) -> Tensor:
    """The directions (2, N, 3) of a disc's local x and y: the rotation's first two columns."""
    w, x, y, _ = rotations.unbind(dim=-1)  # the shortest rotation from +z has no z part
    first = torch.stack((1 - 2 * y * y, 2 * x * y, -2 * w * y), dim=-1)
    second = torch.stack((2 * x * y, 1 - 2 * x * x, 2 * w * x), dim=-1)
    return torch.stack((first, second))


def _to_subnet(vectors: Tensor) -> Tensor:
    """Turns (..., 3) vectors as `TO_SUBNET` does; an index would be copied to the device."""
    return vectors.roll(-1, dims=-1)


def _to_model(vectors: Tensor) -> Tensor:
    return vectors.roll(1, dims=-1)


def _centre_and_scale(points: Tensor) -> tuple[Tensor, Tensor]:
    """The middle (3,) of the box of points (N, 3), and what makes its side `LARGEST_SIDE`; ()."""
    low, high = torch.aminmax(points, dim=0)
    return (low + high) / 2, LARGEST_SIDE / (high - low).max().clamp_min(1e-6)
