"""The validator's pictures without a way through main memory: unpacked, changed, rendered, kept.

What a validator does is the same as in `validator.py` and `views.py`, which serve people and tests;
here it happens on a device, on tensors, and starts from the bytes of an SPZ file.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from generation.rendering import gsplat_backend
from generation.rendering.cameras import VALIDATOR_SIZE, VALIDATOR_VIEWS, validator_camera
from generation.rendering.validator import MAX_LOGIT, REFERENCE_SIDE
from generation.rendering.views import render_on_white
from protocol import spz
from protocol.gaussians import SH_C0, GaussianCloud


@dataclass(frozen=True, eq=False)
class DeviceCloud:
    """N Gaussians on a device, as a rasteriser wants them; all float32.

    Attributes:
        positions: (N, 3).
        scales: (N, 3) standard deviations.
        rotations: (N, 4) quaternions w x y z, not necessarily of length 1.
        opacities: (N,) in 0..1.
        rgb: (N, 3), not clipped.
    """

    positions: Tensor
    scales: Tensor
    rotations: Tensor
    opacities: Tensor
    rgb: Tensor

    def to_cloud(self) -> GaussianCloud:
        """Copies it to main memory; opacity logits beyond +-10 are cut off there."""
        logits = self.opacities.logit().clamp(-MAX_LOGIT, MAX_LOGIT)
        return GaussianCloud(
            positions=self.positions.cpu().numpy(),
            log_scales=self.scales.log().cpu().numpy(),
            rotations=self.rotations.cpu().numpy(),
            opacity_logits=logits.cpu().numpy(),
            colors_dc=((self.rgb - 0.5) / SH_C0).cpu().numpy(),
        )


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


def seen_by_validator(cloud: DeviceCloud) -> DeviceCloud:
    """Recentres, rescales and fades a cloud; see `as_seen_by_validator`.

    Nothing is checked, since that would have to wait for the device: of a cloud whose centres
    coincide, nothing can be seen.
    """
    positions = cloud.positions.double()
    side = (positions.amax(dim=0) - positions.amin(dim=0)).amax()
    scale = REFERENCE_SIDE / side.clamp(min=1e-30)
    return DeviceCloud(
        positions=((positions - positions.mean()) * scale).float(),
        scales=(cloud.scales * scale).float(),
        rotations=cloud.rotations,
        opacities=(cloud.opacities / scale).clamp(0, 1).float(),
        rgb=cloud.rgb,
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
        rgb, coverage = gsplat_backend.rasterize_on_device(
            means=seen.positions,
            quats=seen.rotations,
            scales=seen.scales,
            opacities=seen.opacities,
            colors=seen.rgb,
            viewmats=_matrices(device, size)[0],
            intrinsics=_matrices(device, size)[1],
            size=(size, size),
        )
        on_white = rgb + (1.0 - coverage)
        return (on_white.clamp(0.0, 1.0) * 255.0).to(torch.uint8)
    cameras = [validator_camera(index, size) for index in range(VALIDATOR_VIEWS)]
    return torch.from_numpy(render_on_white(seen.to_cloud(), cameras, backend="cpu")).to(device)


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
