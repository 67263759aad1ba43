"""Gaussian splatting on a CUDA device, by gsplat: the validator's own rasteriser."""

from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray
from torch import Tensor

from generation.rendering.cameras import Camera, validator_camera
from generation.rendering.cpu_backend import BLUR, FAR, NEAR
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud


def rasterize(cloud: GaussianCloud, cameras: list[Camera]) -> tuple[Tensor, Tensor]:
    """Renders a cloud, without a background, through each camera (gsplat.rasterization).

    Args:
        cloud: At least one Gaussian.
        cameras: All of the same picture size.

    Returns:
        Colour (V, H, W, 3) premultiplied by coverage, and coverage (V, H, W) in 0..1; float32, on
        the CUDA device.

    Raises:
        SetupError: There is no CUDA device, or gsplat is not installed.
    """
    if not torch.cuda.is_available():
        raise SetupError(
            "the gsplat back end renders on a CUDA device, and PyTorch sees none",
            fix='use backend="cpu", or run where torch.cuda.is_available() is true',
        )
    if find_spec("gsplat") is None:
        raise SetupError(
            "the gsplat back end needs the gsplat package, which is not installed",
            fix='make install EXTRAS=gpu, or use backend="cpu"',
        )

    def to_device(array: NDArray[np.floating]) -> Tensor:
        return torch.tensor(array, dtype=torch.float32, device="cuda")

    colour, coverage = rasterize_on_device(
        means=to_device(cloud.positions),
        quats=to_device(cloud.rotations),
        scales=to_device(cloud.log_scales).exp(),
        opacities=to_device(cloud.opacities),
        colors=to_device(cloud.rgb),
        viewmats=to_device(np.stack([camera.world_to_camera for camera in cameras])),
        intrinsics=to_device(np.stack([camera.intrinsics for camera in cameras])),
        size=(cameras[0].width, cameras[0].height),
    )
    return colour, coverage[..., 0]


def rasterize_on_device(
    *,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    intrinsics: Tensor,
    size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Renders tensors of one CUDA device as the validator does; float32, also the results.

    Args:
        means: (N, 3) positions; at least one.
        quats: (N, 4) w x y z.
        scales: (N, 3) standard deviations.
        opacities: (N,).
        colors: (N, 3).
        viewmats: (V, 4, 4) world to camera.
        intrinsics: (V, 3, 3).
        size: Width and height in pixels.

    Returns:
        Colour (V, H, W, 3) premultiplied by coverage, and coverage (V, H, W, 1) in 0..1.
    """
    from gsplat.rendering import rasterization

    colour, coverage, _ = rasterization(
        means=means,
        quats=quats / quats.norm(dim=1, keepdim=True),
        scales=scales,
        opacities=opacities,
        colors=colors,
        viewmats=viewmats,
        Ks=intrinsics,
        width=size[0],
        height=size[1],
        near_plane=NEAR,
        far_plane=FAR,
        eps2d=BLUR,
        rasterize_mode="classic",
        packed=False,
    )
    return colour, coverage


@lru_cache(maxsize=1)
def is_usable() -> bool:
    """Whether this process can render with gsplat, found out by rendering one Gaussian.

    gsplat compiles its kernels on first use, which takes minutes and fails where there is no CUDA
    compiler; only a trial tells. A failed trial is logged, once.
    """
    if not torch.cuda.is_available() or find_spec("gsplat") is None:
        return False
    zeros = np.zeros((1, 3), dtype=np.float32)
    rotation = np.array([[1, 0, 0, 0]], dtype=np.float32)
    one = GaussianCloud(zeros, zeros - 4, rotation, zeros[:, 0], zeros)
    try:
        rasterize(one, [validator_camera(0, size=16)])
    except Exception as error:  # the compiler, the loader and the driver each raise their own
        logger.warning(
            "gsplat cannot render here, so the CPU will: {}: {}", type(error).__name__, error
        )
        return False
    return True
