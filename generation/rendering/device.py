"""The validator's pictures of an SPZ file without a way through main memory.

What a validator does is the same as in `views.py`, which serves people and tests; here it starts
from the bytes of the file, and the pictures stay on the device.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from generation.rendering import cpu_backend, gsplat_backend
from generation.rendering.cameras import VALIDATOR_SIZE, VALIDATOR_VIEWS, validator_camera
from generation.rendering.device_cloud import DeviceCloud, on_white, seen_by_validator
from protocol import spz
from protocol.gaussians import SH_C0


def dequantise(packed: spz.PackedCloud, device: torch.device) -> DeviceCloud:
    """Does on a device what `protocol.spz.decode` does after unpacking.

    Args:
        packed: Of an SPZ file of version 2, which this project writes.
        device: Where the bytes are copied to, and where the cloud stays.

    Raises:
        ValueError: The file is of version 1.
    """
    if packed.position_bytes != 9:
        raise ValueError("only SPZ files of version 2 are dequantised on a device, this is 1")
    # A copy, because the bytes of a file may not be written, which torch warns of.
    payload = torch.from_numpy(packed.payload.copy()).to(device)
    raw, alphas, colors, scales, rotations = packed.sections(payload)
    low, middle, high = raw.view(-1, 3, 3).int().unbind(2)
    # The highest byte carries the sign.
    steps = low + (middle << 8) + (((high ^ 0x80) - 0x80) << 16)
    color_values, scale_values, components = _tables(device)
    xyz = components[rotations.long()]
    w = (1 - xyz.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
    return DeviceCloud(
        positions=steps.float() / (1 << packed.fractional_bits),
        scales=scale_values[scales.long()],
        rotations=torch.cat([w, xyz], dim=1),
        opacities=alphas.float() / 255,
        rgb=color_values[colors.long()],
    )


def validator_views(cloud: DeviceCloud, size: int = VALIDATOR_SIZE) -> Tensor:
    """Takes all of the validator's pictures of a cloud, on white.

    gsplat renders on a CUDA device where it works; else the CPU does, and the pictures are copied.

    Args:
        cloud: As a miner answers it.
        size: Width and height of each picture, in pixels.

    Returns:
        (16, size, size, 3) uint8 on the cloud's device, as `render_views` returns them.
    """
    seen = seen_by_validator(cloud)
    device = seen.positions.device
    if device.type == "cuda" and gsplat_backend.is_usable():
        viewmats, intrinsics = _matrices(device, size)
        return on_white(*gsplat_backend.rasterize_on_device(seen, viewmats, intrinsics, size, size))
    cameras = [validator_camera(index, size) for index in range(VALIDATOR_VIEWS)]
    return on_white(*cpu_backend.rasterize(seen.to_cloud(), cameras)).to(device)


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The value of each byte: colour 0..1 (not clipped), scale, component of a quaternion."""
    return (
        torch.from_numpy(np.float32(0.5) + np.float32(SH_C0) * spz.COLORS).to(device),
        torch.from_numpy(np.exp(spz.LOG_SCALES)).to(device),
        torch.from_numpy(spz.COMPONENTS).to(device),
    )


@lru_cache(maxsize=8)
def _matrices(device: torch.device, size: int) -> tuple[Tensor, Tensor]:
    """World to camera (16, 4, 4) and intrinsics (16, 3, 3) of the validator's views, float32."""
    cameras = [validator_camera(index, size) for index in range(VALIDATOR_VIEWS)]
    viewmats = np.stack([camera.world_to_camera for camera in cameras])
    intrinsics = np.stack([camera.intrinsics for camera in cameras])
    return (
        torch.from_numpy(viewmats).float().to(device),
        torch.from_numpy(intrinsics).float().to(device),
    )
