"""The Gaussian cloud: the one value that generation makes and the codecs carry."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]

SH_C0 = 0.28209479177387814
"""Zeroth real spherical harmonic, 1 / (2 sqrt(pi)): rgb = 0.5 + SH_C0 * colors_dc."""

LOGIT_LIMIT = 10.0
"""What both codecs make of an infinite opacity logit: its byte in SPZ is the same."""

MAX_GAUSSIANS = 1_000_000
"""The most Gaussians that a decoder accepts if its caller does not say otherwise: several times as
many as answers have, and no more than are decoded within a second and 300 MB."""

MAX_GAUSSIANS_OF_A_FILE = 10_000_000
"""The most Gaussians of a file that a person names; also what the validators' decoder takes."""

_COLUMNS: dict[str, int | None] = {
    "positions": 3,
    "log_scales": 3,
    "rotations": 4,
    "opacity_logits": None,
    "colors_dc": 3,
}


@dataclass(frozen=True, eq=False)
class GaussianCloud:
    """N Gaussians in the raw parameterisation of 3D Gaussian Splatting (Kerbl et al. 2023).

    Every array is float32, C-contiguous and finite; all share the same N, which may be 0.

    Attributes:
        positions: (N, 3) centres x y z, in scene units.
        log_scales: (N, 3) natural logarithm of the standard deviation along each local axis.
        rotations: (N, 4) quaternions w x y z, local to world; need not be normalised.
        opacity_logits: (N,) opacity before the sigmoid.
        colors_dc: (N, 3) degree-0 spherical-harmonic coefficients; rgb = 0.5 + SH_C0 * colors_dc.

    Raises:
        TypeError: An attribute is not a float32 NumPy array.
        ValueError: An attribute has the wrong shape or holds NaN or infinity.
    """

    positions: Float32Array
    log_scales: Float32Array
    rotations: Float32Array
    opacity_logits: Float32Array
    colors_dc: Float32Array

    def __post_init__(self) -> None:
        count: int | None = None
        for name, columns in _COLUMNS.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != np.float32:
                found = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
                raise TypeError(f"GaussianCloud.{name} must be a float32 array, got {found}")
            if count is None and array.ndim > 0:
                count = array.shape[0]
            expected = (count,) if columns is None else (count, columns)
            if array.shape != expected:
                raise ValueError(
                    f"GaussianCloud.{name} must have shape {expected}, got {array.shape}"
                )
            finite = np.isfinite(array)
            if not finite.all():
                row = int(np.argwhere(~finite)[0][0])
                raise ValueError(
                    f"GaussianCloud.{name} holds {int((~finite).sum())} non-finite values, "
                    f"the first in row {row}: {array[row]}"
                )
            object.__setattr__(self, name, np.ascontiguousarray(array))

    def __len__(self) -> int:
        return int(self.positions.shape[0])

    def arrays(self) -> Iterator[tuple[str, Float32Array]]:
        """Yields (name, array) for the five attributes, in declaration order."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)

    def select(self, index: NDArray[np.bool_] | NDArray[np.integer]) -> "GaussianCloud":
        """Returns the Gaussians picked by a boolean mask (N,) or an integer index (M,)."""
        return GaussianCloud(**{name: array[index] for name, array in self.arrays()})

    @property
    def opacities(self) -> Float32Array:
        """(N,) opacity after the sigmoid, 0..1."""
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * self.opacity_logits)), dtype=np.float32)

    @property
    def rgb(self) -> Float32Array:
        """(N, 3) colour, not clipped to 0..1."""
        return np.asarray(0.5 + SH_C0 * self.colors_dc, dtype=np.float32)
