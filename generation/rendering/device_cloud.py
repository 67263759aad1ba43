"""A Gaussian cloud on a device, what the validator does to it there, and the white behind it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from generation.rendering.validator import MAX_LOGIT, REFERENCE_SIDE
from protocol.gaussians import SH_C0, Float32Array, GaussianCloud


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

    @classmethod
    def of(cls, cloud: GaussianCloud, device: torch.device) -> "DeviceCloud":
        """Copies a cloud to a device."""

        def put(array: Float32Array) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            positions=put(cloud.positions),
            scales=put(cloud.log_scales).exp(),
            rotations=put(cloud.rotations),
            opacities=put(cloud.opacity_logits).sigmoid(),
            rgb=put(cloud.colors_dc) * SH_C0 + 0.5,
        )

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


def on_white(rgb: Tensor, coverage: Tensor) -> Tensor:
    """Lays pictures on white.

    Args:
        rgb: (V, H, W, 3) float32, premultiplied by coverage.
        coverage: (V, H, W) float32 in 0..1.

    Returns:
        (V, H, W, 3) uint8: colours clipped to 0..1, times 255, truncated as the validator does.
    """
    pictures = rgb + (1.0 - coverage[..., None])
    return (pictures.clamp_(0.0, 1.0) * 255.0).to(torch.uint8)
