"""The density and colour of one scene, as its splats and meshes ask for them."""

import torch
from loguru import logger
from torch import Tensor

from generation.lift.triposr.chunking import map_in_chunks
from generation.lift.triposr.fused import FusedDecoder
from generation.lift.triposr.model import TripoSR
from generation.lift.triposr.triplane import SceneCode
from generation.recovery import is_of_device

LOWEST, HIGHEST = -69.0, 69.0
"""Log-densities beyond are cut off: 1e-30 and 1e30 are as far from any surface as needed."""

_FUSED_CHUNK, _FUSED_FLOOR = 1 << 23, 1 << 16


class SceneField:
    """One scene code and the network that reads it.

    Everything is read as log-density, which is close to linear across a surface. Where the network
    has a fused decoder, that one reads it; should it fail, a warning says why, once, and the
    network's layers do from then on.

    Args:
        model: The network whose decoder reads `scene_code`.
        scene_code: (3, C, H, W) triplane on the model's device.
        terms: Of the fused decoder for this scene; computed if None.
    """

    def __init__(self, model: TripoSR, scene_code: SceneCode, terms: Tensor | None = None) -> None:
        self._model, self._scene_code, self._terms = model, scene_code, terms
        if terms is None and model.fused is not None:
            self._terms = model.fused.terms(scene_code)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What `SceneField` needs besides the network to make the same field again."""
        return (self._scene_code,) if self._terms is None else (self._scene_code, self._terms)

    @property
    def radius(self) -> float:
        """Half the side of the cube, in world units."""
        return self._model.radius

    @property
    def texels(self) -> int:
        """Of a plane, along a side."""
        return self._scene_code.shape[-1]

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self._scene_code.device

    def log_density(self, points: Tensor) -> Tensor:
        """(N,) natural logarithm of the density at (N, 3) world points; finite unless NaN."""
        return self.unbounded_log_density(points).clamp_(LOWEST, HIGHEST)

    def unbounded_log_density(self, points: Tensor) -> Tensor:
        """`log_density`, not cut off."""
        raw = self._decode_fused(points, outputs=1)
        if raw is None:
            return self._model.query_log_density(points, self._scene_code)
        return raw[:, 0].add_(self._model.config.density_bias)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density (N,), as `log_density`, and RGB (N, 3) in 0..1 at (N, 3) world points."""
        raw = self._decode_fused(points, outputs=4)
        if raw is None:
            raw = self._model.query_raw(points, self._scene_code)
        density = (raw[:, 0] + self._model.config.density_bias).clamp_(LOWEST, HIGHEST)
        return density, torch.sigmoid(raw[:, 1:])

    def log_density_lattice(self, resolution: int) -> Tensor:
        """(R, R, R) log-density from face to face of the cube, indexed [x][y][z]; not cut off."""
        if self._terms is None or self._model.fused is None:
            return self._model.log_density_grid(self._scene_code, resolution)
        line = torch.linspace(-self.radius, self.radius, resolution, device=self.device)

        def decode(start: int, stop: int) -> Tensor:
            points = torch.cartesian_prod(line[start:stop], line, line)
            return self.unbounded_log_density(points).view(-1, resolution, resolution)

        slices = max(1, _FUSED_CHUNK // resolution**2)
        return map_in_chunks(decode, resolution, slices, floor=1)

    def _decode_fused(self, points: Tensor, *, outputs: int) -> Tensor | None:
        """(N, outputs) raw values, or None if the decoder is not fused."""
        fused, terms = self._model.fused, self._terms
        if fused is None or terms is None:
            return None
        try:
            return _in_chunks(fused, terms, points, self.radius, outputs)
        except Exception as error:  # Triton's compiler, its launcher and the driver raise their own
            if is_of_device(error):
                raise
            self._model.fused = None
            first_line = (str(error).splitlines() or [""])[0]
            logger.warning(
                "TripoSR's decoder runs layer by layer from now on, more slowly: {}: {}",
                type(error).__name__,
                first_line,
            )
            return None


def _in_chunks(
    fused: FusedDecoder, terms: Tensor, points: Tensor, radius: float, outputs: int
) -> Tensor:
    def decode(start: int, stop: int) -> Tensor:
        return fused(terms, points[start:stop], radius, outputs=outputs)

    if len(points) == 0:
        return decode(0, 0)
    return map_in_chunks(decode, len(points), _FUSED_CHUNK, _FUSED_FLOOR)
