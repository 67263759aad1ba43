"""Gaussian splatting on a CUDA device, by gsplat: the validator's own rasteriser."""

import os
from concurrent.futures import Future
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from loguru import logger
from torch import Tensor

from generation.rendering.cameras import Camera, validator_camera
from generation.rendering.cpu_backend import BLUR, FAR, NEAR
from generation.rendering.device_cloud import DeviceCloud
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud


def place(cloud: GaussianCloud) -> DeviceCloud:
    """Copies a cloud to the current CUDA device, to be rendered there.

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
    return DeviceCloud.of(cloud, torch.device("cuda"))


def rasterize(cloud: DeviceCloud, cameras: list[Camera]) -> tuple[Tensor, Tensor]:
    """Renders a cloud, without a background, through each camera (gsplat.rasterization).

    Args:
        cloud: At least one Gaussian, on a CUDA device.
        cameras: All of the same picture size.

    Returns:
        Colour (V, H, W, 3) premultiplied by coverage, and coverage (V, H, W) in 0..1; float32, on
        the cloud's device.
    """
    device = cloud.positions.device
    viewmats = torch.from_numpy(np.stack([camera.world_to_camera for camera in cameras]))
    intrinsics = torch.from_numpy(np.stack([camera.intrinsics for camera in cameras]))
    return rasterize_on_device(
        cloud,
        viewmats.float().to(device),
        intrinsics.float().to(device),
        cameras[0].width,
        cameras[0].height,
    )


def rasterize_on_device(
    cloud: DeviceCloud, viewmats: Tensor, intrinsics: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Renders a cloud of a CUDA device as the validator does.

    Args:
        cloud: At least one Gaussian.
        viewmats: (V, 4, 4) float32 world to camera, on the same device.
        intrinsics: (V, 3, 3) float32, on the same device.
        width: Of a picture, in pixels.
        height: Of a picture, in pixels.

    Returns:
        Colour (V, H, W, 3) premultiplied by coverage, and coverage (V, H, W) in 0..1; float32.
    """
    return rasterize_with_info(cloud, viewmats, intrinsics, width, height)[:2]


def rasterize_with_info(
    cloud: DeviceCloud,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    blur: float = BLUR,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Returns gsplat's intermediate results as well; see `differentiable.rasterize`."""
    from gsplat.rendering import rasterization

    colour, coverage, info = rasterization(
        means=cloud.positions,
        quats=cloud.rotations / cloud.rotations.norm(dim=1, keepdim=True),
        scales=cloud.scales,
        opacities=cloud.opacities,
        colors=cloud.rgb,
        viewmats=viewmats,
        Ks=intrinsics,
        width=width,
        height=height,
        near_plane=NEAR,
        far_plane=FAR,
        eps2d=blur,
        rasterize_mode="classic",
        packed=False,
    )
    return colour, coverage[..., 0], info


def is_usable() -> bool:
    """Whether this process can render with gsplat, found out by rendering one Gaussian.

    gsplat compiles its kernels on first use, which takes minutes and fails where there is no CUDA
    compiler; only a trial tells. A failed trial is logged, once. Waits for a trial that runs.
    """
    return start_trial().result()


@lru_cache(maxsize=1)
def start_trial() -> Future[bool]:
    """Starts the trial in a thread, once: the compilers it runs are processes of their own."""
    outcome: Future[bool] = Future()
    Thread(target=lambda: outcome.set_result(_try_one()), name="gsplat", daemon=True).start()
    return outcome


_COMPILING_LIMIT_S = 1800.0
"""How long to wait for another process that compiles gsplat, which takes minutes on few cores."""


def _try_one() -> bool:
    """Returns an outcome after any error: `is_usable` would wait without end for a missing one."""
    if not torch.cuda.is_available() or find_spec("gsplat") is None:
        return False
    zeros = np.zeros((1, 3), dtype=np.float32)
    rotation = np.array([[1, 0, 0, 0]], dtype=np.float32)
    one = GaussianCloud(zeros, zeros - 4, rotation, zeros[:, 0], zeros)
    try:
        # Its first import deletes what another process is compiling at the same moment.
        with FileLock(_build_root() / "gsplat.lock", timeout=_COMPILING_LIMIT_S):
            rasterize(place(one), [validator_camera(0, size=16)])
    except BaseException as error:  # The compiler, the loader and the driver each raise their own.
        logger.warning(
            "gsplat cannot render here, so the CPU will: {}: {}", type(error).__name__, error
        )
        return False
    return True


def _build_root() -> Path:
    """The folder in which torch compiles extensions, gsplat among them; made if missing."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    root.mkdir(parents=True, exist_ok=True)
    return root
