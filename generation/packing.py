"""Gaussians on a device to main memory, already quantised as their SPZ file holds them.

What `protocol.spz` does with NumPy is done here with torch, before the cloud leaves the device.
Every step is an operation that IEEE 754 rounds in one way, or a comparison, so the bytes are the
same.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.acceleration.streams import all_to_host
from generation.scoring.validity import IDENTITY_STEP, Measures, stray_count
from protocol import spz
from protocol.gaussians import GaussianCloud

LARGEST_SIDE = 1.6
"""Largest side of a finished cloud. A validator rescales to 1.5 and divides opacity by the factor,
so anything of 1.5 or more keeps its opacity; the rest is a margin for its way of measuring."""


@dataclass(frozen=True, eq=False)
class GaussianTensors:
    """N Gaussians on one device, in the parameters of `GaussianCloud`; float32.

    Attributes:
        positions: (N, 3).
        log_scales: (N, 3).
        rotations: (N, 4), w x y z.
        opacity_logits: (N,).
        colors_dc: (N, 3).
    """

    positions: Tensor
    log_scales: Tensor
    rotations: Tensor
    opacity_logits: Tensor
    colors_dc: Tensor

    def to_cloud(self) -> GaussianCloud:
        """Copies them to main memory.

        Raises:
            ValueError: A number is not finite.
        """
        (flat,) = all_to_host(self._flat())
        return self._cloud_of(flat)

    def tensors(self) -> tuple[Tensor, ...]:
        """The attributes in their order."""
        return (
            self.positions,
            self.log_scales,
            self.rotations,
            self.opacity_logits,
            self.colors_dc,
        )

    def to_splats(self, quantised: tuple[Tensor, Tensor] | None = None) -> "Splats":
        """Copies them to main memory, as a cloud and as the payload of its SPZ file.

        Args:
            quantised: What `quantise` returns for `tensors`, if the caller has called it.

        Raises:
            ValueError: A number is not finite.
            CodecError: SPZ cannot hold them; see `protocol.spz.encode`.
        """
        payload, numbers = quantised or quantise(*self.tensors())
        flat, packed, found = all_to_host(self._flat(), payload, numbers)
        cloud = self._cloud_of(flat)
        low, high, core_low, core_high, others = np.split(found, [3, 6, 9, 12])
        mean, transparent_share, identity_share, shortest, longest = others.tolist()
        if (
            low.min() < spz.POSITION_MIN
            or high.max() > spz.POSITION_MAX
            or not spz.LENGTH_MIN <= shortest <= longest <= spz.LENGTH_MAX
        ):
            spz.payload(cloud)  # Raises, and names the row.
        packed[: spz.HEADER_BYTES] = np.frombuffer(spz.header(len(cloud)), np.uint8)
        return Splats(
            cloud,
            packed,
            Measures(
                count=len(cloud),
                transparent_share=transparent_share,
                identity_share=identity_share,
                low=low,
                high=high,
                core_low=core_low,
                core_high=core_high,
                mean=mean,
            ),
        )

    def _flat(self) -> Tensor:
        """(14 N,): one transfer, since each makes the host wait."""
        columns = (self.positions, self.log_scales, self.rotations, self.colors_dc)
        return torch.cat([*(column.flatten() for column in columns), self.opacity_logits])

    def _cloud_of(self, flat: NDArray[np.float32]) -> GaussianCloud:
        count = len(self.positions)
        positions, log_scales, rotations, colors, logits = np.split(
            flat, np.cumsum([3 * count, 3 * count, 4 * count, 3 * count])
        )
        return GaussianCloud(
            positions=positions.reshape(count, 3),
            log_scales=log_scales.reshape(count, 3),
            rotations=rotations.reshape(count, 4),
            opacity_logits=logits,
            colors_dc=colors.reshape(count, 3),
        )


@dataclass(frozen=True, eq=False)
class Splats:
    """What the stage `splats` makes, for the stage `encode`.

    Attributes:
        cloud: The Gaussian cloud, unrounded.
        payload: Its uncompressed SPZ payload, as `protocol.spz.payload` has it; uint8.
        measures: What the validator's checks need to know of it.
    """

    cloud: GaussianCloud
    payload: NDArray[np.uint8]
    measures: Measures


def quantise(
    positions: Tensor, log_scales: Tensor, rotations: Tensor, opacity_logits: Tensor, dc: Tensor
) -> tuple[Tensor, Tensor]:
    """Quantises Gaussians as `protocol.spz` does, and measures them.

    Looks at no value on the host. The arguments are the attributes of `GaussianTensors`.

    Returns:
        The payload (16 + 19 N,) uint8, its header empty; (17,) float64: the low, high, core_low,
        core_high, mean, transparent_share and identity_share of `Measures`, and the least and the
        largest length of a rotation.
    """
    count, device = len(positions), positions.device
    almost_half = spz.ALMOST_HALF.item()

    steps = positions * spz.POSITION_STEPS
    steps += torch.copysign(torch.full_like(steps, almost_half), steps)
    # The lower three of four bytes, the lowest first.
    places = steps.int().view(torch.uint8).view(-1, 4)[:, :3]

    alphas = torch.bucketize(opacity_logits, _alpha_limits(device), right=True).byte()

    # In float64, as the reference's fused multiply-add, but here in two operations.
    colors = dc.double() * 38.25
    colors = (colors + 127.5).clamp_(0.0, 255.0).float()
    scales = (log_scales.clamp(-10.0, 5.9375) + 10.0) * 16.0

    w, x, y, z = columns = rotations.T.contiguous()
    length = (w * w + x * x + y * y + z * z).sqrt()
    # q and -q become the one with w >= 0; adding 0 makes -0.0 count as 0.
    turns = columns[1:] / torch.copysign(length, w + 0.0) * 127.5 + 127.5

    rounded = torch.cat([colors.flatten(), scales.flatten(), turns.T.flatten()]) + almost_half
    header = torch.zeros(spz.HEADER_BYTES, dtype=torch.uint8, device=device)
    payload = torch.cat([header, places.flatten(), alphas, rounded.byte()])

    axes = positions.T.contiguous()
    stray = stray_count(count)
    largest = columns[1:].abs().amax(dim=0)
    identity = (largest < IDENTITY_STEP * length) & (length > 0)
    numbers = (
        *(axes.amin(dim=1), axes.amax(dim=1)),
        *(axes.kthvalue(stray + 1, dim=1)[0], axes.kthvalue(count - stray, dim=1)[0]),
        axes.mean(dtype=torch.float64)[None],
        torch.stack([(alphas == 0).double().mean(), identity.double().mean()]),
        torch.stack(torch.aminmax(length)),
    )
    return payload, torch.cat([part.double() for part in numbers])


@lru_cache(maxsize=8)
def _alpha_limits(device: torch.device) -> Tensor:
    """(255,) float32: the least logit of each alpha byte from 1 on.

    Found by bisection of the bytes that `protocol.spz` writes, because no two libraries agree on
    the last bit of an exponential.
    """
    wanted = np.arange(1, 256)
    low, high = np.full(255, -20.0, np.float32), np.full(255, 20.0, np.float32)
    while True:
        middle = ((low.astype(np.float64) + high) / 2).astype(np.float32)
        if ((middle == low) | (middle == high)).all():
            break
        enough = spz.alpha_bytes(middle) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    with torch.inference_mode(False):
        return torch.from_numpy(high).to(device)
