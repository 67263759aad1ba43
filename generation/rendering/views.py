"""Pictures of a cloud: the one door to both back ends."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from generation.acceleration.streams import all_to_host, to_host
from generation.rendering import cpu_backend, gsplat_backend
from generation.rendering.cameras import (
    DUEL_VIEWS,
    VALIDATOR_SIZE,
    Camera,
    validator_camera,
)
from generation.rendering.device_cloud import on_white, seen_by_validator
from generation.rendering.validator import as_seen_by_validator, require_size
from protocol.gaussians import Float32Array, GaussianCloud

Backend = Literal["auto", "gsplat", "cpu"]


def render_layers(
    cloud: GaussianCloud, cameras: Sequence[Camera], *, backend: Backend = "auto"
) -> tuple[Float32Array, Float32Array]:
    """Renders a cloud, as it is, through any cameras, keeping colour and coverage apart.

    Over a background b the picture is rgb + (1 - coverage)[..., None] * b.

    Args:
        cloud: Any number of Gaussians.
        cameras: At least one; all of the same picture size.
        backend: "gsplat" (needs CUDA), "cpu", or "auto": gsplat where it works, else the CPU.

    Returns:
        rgb (V, H, W, 3), premultiplied by coverage and not clipped, and coverage, the accumulated
        alpha (V, H, W) in 0..1; both float32.

    Raises:
        ValueError: No cameras, cameras of different sizes, or an unknown back end.
        SetupError: gsplat was asked for and cannot run.
    """
    rgb, coverage = all_to_host(*_rasterize(cloud, cameras, backend))
    return rgb, coverage


def render_views(
    cloud: GaussianCloud,
    indices: Sequence[int] = DUEL_VIEWS,
    size: int = VALIDATOR_SIZE,
    as_validator: bool = True,
    *,
    backend: Backend = "auto",
) -> NDArray[np.uint8]:
    """Takes the validator's pictures of a cloud, on white.

    Args:
        cloud: The cloud as a miner answers it.
        indices: Which of the validator's 16 views, 0..15.
        size: Width and height of each picture, in pixels.
        as_validator: Recentre, rescale and fade the cloud first, as the validator does.
        backend: See `render_layers`.

    Returns:
        (V, H, W, 3) uint8: colours clipped to 0..1, times 255, truncated as the validator does.

    Raises:
        ValueError: No view, an unknown view, a bad size, or a cloud that cannot be rescaled.
        SetupError: gsplat was asked for and cannot run.
    """
    cameras = [validator_camera(index, size) for index in indices]
    return to_host(on_white(*_rasterize(cloud, cameras, backend, as_validator=as_validator)))


def render_on_white(
    cloud: GaussianCloud, cameras: Sequence[Camera], *, backend: Backend = "auto"
) -> NDArray[np.uint8]:
    """Renders a cloud, as it is, through any cameras, on white; see `render_layers`.

    Returns:
        (V, H, W, 3) uint8: colours clipped to 0..1, times 255, truncated as the validator does.
    """
    return to_host(on_white(*_rasterize(cloud, cameras, backend)))


def _rasterize(
    cloud: GaussianCloud, cameras: Sequence[Camera], backend: Backend, *, as_validator: bool = False
) -> tuple[Tensor, Tensor]:
    """Colour (V, H, W, 3) and coverage (V, H, W), on the device that rendered them."""
    sizes = sorted({(camera.width, camera.height) for camera in cameras})
    if len(sizes) != 1:
        raise ValueError(f"cameras must share one picture size, got {sizes or 'no cameras'}")
    if backend not in ("auto", "gsplat", "cpu"):
        raise ValueError(f'backend must be "auto", "gsplat" or "cpu", got {backend!r}')
    use_gsplat = backend == "gsplat" or (backend == "auto" and gsplat_backend.is_usable())
    if as_validator:
        require_size(cloud)
    if use_gsplat and len(cloud):
        placed = gsplat_backend.place(cloud)
        seen = seen_by_validator(placed) if as_validator else placed
        return gsplat_backend.rasterize(seen, list(cameras))
    return cpu_backend.rasterize(
        as_seen_by_validator(cloud) if as_validator else cloud, list(cameras)
    )
