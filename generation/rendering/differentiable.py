"""Gaussian splatting with gradients: gsplat on CUDA, PyTorch's autograd on the CPU.

The CPU's way is for tests, laptops and small clouds: a view of 128 x 128 of 20,000 Gaussians takes
about 0.16 s forwards and backwards on one core. It draws what `cpu_backend` draws.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from generation.rendering.cpu_backend import (
    BLUR,
    FAR,
    MAX_ALPHA,
    MIN_ALPHA,
    MIN_TRANSMITTANCE,
    NEAR,
)
from generation.rendering.device_cloud import DeviceCloud
from generation.rendering.gsplat_backend import rasterize_with_info


class _Splats(NamedTuple):
    """N Gaussians projected through C cameras.

    mean (C, N, 2) pixels; conic (C, N, 3): xx, xy, yy of the inverse covariance; depth (C, N); half
    (C, N, 2): of the box outside which alpha is under 1/255, 0 where nothing is drawn. The first
    two carry gradients.
    """

    mean: Tensor
    conic: Tensor
    depth: Tensor
    half: Tensor


def rasterize(
    cloud: DeviceCloud,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    backgrounds: Tensor | None = None,
    blur: float = BLUR,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Renders Gaussians through C cameras; gradients reach the cloud and the cameras' places.

    Args:
        cloud: N Gaussians; colours may have any number of channels D.
        viewmats: (C, 4, 4) world to camera, OpenCV axes.
        intrinsics: (C, 3, 3).
        width: Of a picture, in pixels.
        height: Of a picture, in pixels.
        backgrounds: (C, D); black when None.
        blur: Square pixels added to each projected variance.

    Returns:
        Colours (C, H, W, D), coverage (C, H, W) in 0..1, and what gsplat's densification reads:
        `means2d` (C, N, 2) in pixels, whose gradient the caller may retain, `radii` (C, N, 2) in
        pixels, `width`, `height` and `n_cameras`.
    """
    draw = rasterize_with_info if cloud.positions.device.type == "cuda" else _on_cpu
    colour, coverage, info = draw(cloud, viewmats, intrinsics, width, height, blur)
    if backgrounds is not None:
        colour = colour + (1 - coverage[..., None]) * backgrounds[:, None, None]
    return colour, coverage, info


def _on_cpu(
    cloud: DeviceCloud,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    blur: float,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    splats = _project(cloud, viewmats, intrinsics, width, height, blur)
    rgb1 = F.pad(cloud.rgb, (0, 1), value=1.0)
    cameras = range(len(viewmats))
    views = torch.stack([_draw(splats, c, cloud.opacities, rgb1, width, height) for c in cameras])
    info = {
        "means2d": splats.mean,
        "radii": splats.half.ceil().int(),
        "width": width,
        "height": height,
        "n_cameras": len(viewmats),
    }
    return views[..., :-1], views[..., -1], info


def rotation_matrices(quats: Tensor) -> Tensor:
    """(N, 3, 3) of quaternions w x y z (N, 4) of any length but 0."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).view(-1, 3, 3)


def _project(
    cloud: DeviceCloud,
    viewmats: Tensor,
    intrinsics: Tensor,
    width: int,
    height: int,
    blur: float,
) -> _Splats:
    """EWA splatting, as in `cpu_backend`; in float64, since thin ellipses need it."""
    dtype = cloud.positions.dtype
    views, intrinsics = viewmats.double(), intrinsics.double()
    turn, shift = views[:, :3, :3], views[:, :3, 3]
    x, y, z = (cloud.positions.double() @ turn.mT + shift[:, None]).unbind(-1)
    fx, fy = intrinsics[:, 0, 0, None], intrinsics[:, 1, 1, None]
    cx, cy = intrinsics[:, 0, 2, None], intrinsics[:, 1, 2, None]
    drawn = (z >= NEAR) & (z <= FAR)
    # What is not drawn must not make gradients that are not finite.
    z = torch.where(drawn, z, 1.0)
    mean = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)
    ray_x = torch.clamp(x / z, -(cx + 0.15 * width) / fx, (width - cx + 0.15 * width) / fx)
    ray_y = torch.clamp(y / z, -(cy + 0.15 * height) / fy, (height - cy + 0.15 * height) / fy)
    axes = turn[:, None] @ (
        rotation_matrices(cloud.rotations.double()) * cloud.scales.double()[:, None]
    )
    to_x = (fx / z)[..., None] * (axes[..., 0, :] - ray_x[..., None] * axes[..., 2, :])
    to_y = (fy / z)[..., None] * (axes[..., 1, :] - ray_y[..., None] * axes[..., 2, :])
    xx, yy = to_x.square().sum(-1) + blur, to_y.square().sum(-1) + blur
    xy = (to_x * to_y).sum(-1)
    determinant = xx * yy - xy * xy
    conic = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
    with torch.no_grad():
        reach = (2 * (cloud.opacities.double() / MIN_ALPHA).log().clamp_min(0)).sqrt()
        half = reach[:, None] * torch.stack([xx, yy], dim=-1).sqrt()
        drawn = drawn & (determinant > 0) & half.isfinite().all(-1)
        half = torch.where(drawn[..., None], half, 0.0)
    return _Splats(mean.to(dtype), conic.to(dtype), z.detach(), half)


def _draw(
    splats: _Splats, camera: int, opacities: Tensor, rgb1: Tensor, width: int, height: int
) -> Tensor:
    """Blends front to back; returns (H, W, D + 1) premultiplied colours and coverage."""
    mean, conic = splats.mean[camera], splats.conic[camera]
    pixel, index = _overlaps(
        mean.detach(), splats.half[camera], splats.depth[camera], width, height
    )
    with torch.no_grad():
        alpha = _alpha(mean, conic, opacities, pixel, index, width)
        seen = (alpha >= MIN_ALPHA).nonzero()[:, 0]
        seen = seen.index_select(0, pixel.index_select(0, seen).argsort(stable=True))
        pixel, index, alpha = (x.index_select(0, seen) for x in (pixel, index, alpha))
        seen = (_light(alpha, pixel) * (1 - alpha) > MIN_TRANSMITTANCE).nonzero()[:, 0]
        pixel, index = pixel.index_select(0, seen), index.index_select(0, seen)
    # What is behind others has no part in colours or gradients, so only the rest is recorded.
    alpha = _alpha(mean, conic, opacities, pixel, index, width)
    weights = _light(alpha, pixel) * alpha
    blended = rgb1.new_zeros(height * width, rgb1.shape[1])
    blended = blended.index_add(0, pixel, weights[:, None] * rgb1.index_select(0, index))
    return blended.view(height, width, -1)


def _overlaps(
    mean: Tensor, half: Tensor, depth: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor]:
    """Pixels (P,), row by row, whose centre is in a Gaussian's box, and the Gaussians (P,).

    In the order of the Gaussians, nearest first.
    """
    size = torch.tensor([width, height])
    low = (mean - half - 0.5).ceil().clamp_min(0).minimum(size).long()
    high = (mean + half + 0.5).floor().clamp_min(0).minimum(size).long()
    extent = (high - low).clamp_min(0) * (half > 0)
    counts = extent.prod(1)
    order = depth.argsort(stable=True)
    order = order[counts[order] > 0]
    low, columns, counts = low[order], extent[order, 0], counts[order]
    place = torch.arange(len(order), dtype=torch.int32).repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    table = torch.stack([low[:, 0], low[:, 1], extent[order, 0], start, order]).int()
    x, y, columns, start, index = (column.index_select(0, place) for column in table)
    within = torch.arange(len(place), dtype=torch.int32) - start
    row = within // columns
    return (y + row) * width + x + within - row * columns, index


def _alpha(
    mean: Tensor, conic: Tensor, opacities: Tensor, pixel: Tensor, index: Tensor, width: int
) -> Tensor:
    """How much of the light Gaussians `index` (P,) hold back at pixels (P,)."""
    ellipses = torch.cat([mean, conic, opacities[:, None]], dim=1).index_select(0, index)
    x, y, xx, xy, yy, opacity = ellipses.unbind(1)
    row = pixel // width
    dx = (pixel - row * width + 0.5) - x
    dy = (row + 0.5) - y
    power = 0.5 * (xx * dx * dx + yy * dy * dy) + xy * dx * dy
    return (opacity * torch.exp(-power)).clamp(max=MAX_ALPHA)


def _light(alpha: Tensor, pixel: Tensor) -> Tensor:
    """The share of light (P,) that what is nearer in the same pixel lets through.

    Pairs of one pixel lie together, nearest first. The products are differences of one long sum of
    logarithms, which float64 can hold.
    """
    if not len(alpha):
        return alpha
    passed = torch.log1p(-alpha.double())
    before = passed.cumsum(0) - passed
    first = torch.ones_like(pixel, dtype=torch.bool)
    first[1:] = pixel[1:] != pixel[:-1]
    start = before[first].index_select(0, first.cumsum(0) - 1)
    return (before - start).exp().to(alpha.dtype)
