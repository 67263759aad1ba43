"""Tone and light of a cloud's colours, by least squares against one picture of it."""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.rendering.device_cloud import DeviceCloud
from generation.rendering.differentiable import rotation_matrices

_COVERED = 0.9
"""Coverage from which a pixel shows the object alone."""

_GAIN, _LIGHT, _OFFSET = 0.01, 0.03, 0.1
"""How strongly each is drawn to 0, as a share of the pixels."""

Draw = Callable[[DeviceCloud], Tensor]


def match_tone(cloud: DeviceCloud, draw: Draw, target: Tensor, compared: Tensor) -> DeviceCloud:
    """Fits a gain, an offset and a light to each channel; a picture of one side shows all three.

    A colour c with the outward normal n becomes c (1 + g + l n) + o, with g, o and the three
    numbers l for each channel. Pictures are linear in them, so one drawing of all terms is enough.

    Args:
        cloud: N Gaussians.
        draw: Renders a cloud of D channels to (S, S, D + 1): colours premultiplied by coverage, and
            coverage.
        target: (S, S, 4) colours premultiplied by alpha, and alpha.
        compared: (S, S) bool, the pixels that count.
    """
    terms = F.pad(outward_normals(cloud), (1, 0), value=1.0)
    shown = draw(replace(cloud, rgb=(terms[..., None] * cloud.rgb[:, None]).flatten(1)))
    pixels = compared & (shown[..., -1] > _COVERED) & (target[..., 3] > _COVERED)
    # (3, P, 5): by channel, what one unit of each unknown adds to a pixel.
    parts = shown[pixels][:, :-1].view(-1, 4, 3).permute(2, 0, 1)
    offsets = shown[pixels][:, -1].expand(3, -1)[..., None]
    columns = torch.cat([parts, offsets], dim=-1).double()
    missing = (target[pixels][:, :3].T - parts[..., 0]).double()[..., None]
    strengths = columns.new_tensor([_GAIN, _LIGHT, _LIGHT, _LIGHT, _OFFSET]) * max(
        len(offsets[0]), 1
    )
    found = torch.linalg.solve(columns.mT @ columns + strengths.diag(), columns.mT @ missing)[
        ..., 0
    ].to(cloud.rgb.dtype)
    return replace(cloud, rgb=cloud.rgb * (1 + terms @ found[:, :4].T) + found[:, 4])


def outward_normals(cloud: DeviceCloud) -> Tensor:
    """(N, 3): each Gaussian's thinnest axis, away from the middle of the cloud."""
    thinnest = cloud.scales.argmin(dim=1)[:, None, None].expand(-1, 3, 1)
    normals = rotation_matrices(cloud.rotations).gather(2, thinnest)[..., 0]
    outward = ((cloud.positions - cloud.positions.mean(dim=0)) * normals).sum(-1, keepdim=True)
    return torch.where(outward < 0, -normals, normals)
