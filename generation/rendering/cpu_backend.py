"""Gaussian splatting on the CPU, in PyTorch: readable, exact and bounded in memory.

The method is that of 3D Gaussian Splatting (Kerbl et al. 2023) with the EWA projection of Zwicker
et al. (2001): project every Gaussian to an ellipse, sort by depth, blend front to back. Constants
follow gsplat's "classic" rasterisation, which the validator uses.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from generation.rendering.cameras import Camera
from protocol.gaussians import GaussianCloud

NEAR, FAR = 0.01, 100.0
BLUR = 0.3
"""Square pixels added to each projected variance, so that no Gaussian falls between pixels."""
MIN_ALPHA = 1.0 / 255.0
MAX_ALPHA = 0.999
MIN_TRANSMITTANCE = 1e-4

_TILE = 8
_CHUNK = 512


class _Gaussians(NamedTuple):
    """A cloud as tensors: positions (N, 3), axes (N, 3, 3), opacities (N,), rgb1 (N, 4).

    The columns of `axes` are the principal axes, each as long as its standard deviation, so the
    covariance is axes @ axes.T. The fourth colour channel is 1: it accumulates coverage.
    """

    positions: Tensor
    axes: Tensor
    opacities: Tensor
    rgb1: Tensor


class _Splats(NamedTuple):
    """M visible ellipses in pixels, nearest first.

    mean, low and high are (M, 2): the centre and the box outside which alpha is under 1/255.
    conic (M, 3) holds xx, xy and yy of the inverse covariance; log_opacity and max_alpha are (M,).
    """

    mean: Tensor
    conic: Tensor
    low: Tensor
    high: Tensor
    log_opacity: Tensor
    max_alpha: Tensor
    rgb1: Tensor


def rasterize(cloud: GaussianCloud, cameras: list[Camera]) -> tuple[Tensor, Tensor]:
    """Renders a cloud, without a background, through each camera.

    A Gaussian whose projection is not a finite, positive-definite ellipse is not drawn. Memory
    grows with the number of Gaussians (times the views drawn at once, one per thread) plus that of
    pixels, never with their product.

    Args:
        cloud: Any number of Gaussians.
        cameras: All of the same picture size.

    Returns:
        Colour (V, H, W, 3) premultiplied by coverage, and coverage (V, H, W) in 0..1; float32.
    """
    gaussians = _to_tensors(cloud)

    def picture(camera: Camera) -> Tensor:
        with torch.inference_mode():
            return _draw(_project(gaussians, camera), camera)

    # Blending is thousands of small operations. Sharing each among threads gains nothing, and costs
    # fortyfold when another process holds a core (every barrier waits for it); sharing the views
    # out does gain. PyTorch keeps this number per thread, but new threads inherit the last one set.
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            pictures = torch.stack(list(pool.map(picture, cameras)))
    finally:
        torch.set_num_threads(threads)
    return pictures[..., :3], pictures[..., 3]


def _to_tensors(cloud: GaussianCloud) -> _Gaussians:
    """Float64, because long thin ellipses lose their determinant in float32."""
    q = torch.tensor(cloud.rotations, dtype=torch.float64)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rotation = torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=1,
    ).view(-1, 3, 3)
    scales = torch.tensor(cloud.log_scales, dtype=torch.float64).exp()
    ones = np.ones((len(cloud), 1), dtype=np.float32)
    return _Gaussians(
        positions=torch.tensor(cloud.positions, dtype=torch.float64),
        axes=rotation * scales[:, None, :],
        opacities=torch.tensor(cloud.opacities, dtype=torch.float64),
        rgb1=torch.from_numpy(np.hstack([cloud.rgb, ones])),
    )


def _project(gaussians: _Gaussians, camera: Camera) -> _Splats:
    """EWA splatting: the local affine approximation of the projection at each centre."""
    world_to_camera = torch.tensor(camera.world_to_camera, dtype=torch.float64)
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    x, y, z = (gaussians.positions @ rotation.T + translation).unbind(1)
    # Far outside the picture the affine approximation explodes, so its ray is clamped to 15 % of
    # the picture beyond the edge; the centre itself is not.
    margin_x, margin_y = 0.15 * camera.width, 0.15 * camera.height
    ray_x = (x / z).clamp(
        -(camera.cx + margin_x) / camera.fx, (camera.width - camera.cx + margin_x) / camera.fx
    )
    ray_y = (y / z).clamp(
        -(camera.cy + margin_y) / camera.fy, (camera.height - camera.cy + margin_y) / camera.fy
    )
    in_camera = rotation @ gaussians.axes
    to_x = (camera.fx / z)[:, None] * (in_camera[:, 0] - ray_x[:, None] * in_camera[:, 2])
    to_y = (camera.fy / z)[:, None] * (in_camera[:, 1] - ray_y[:, None] * in_camera[:, 2])
    xx = (to_x * to_x).sum(1) + BLUR
    xy = (to_x * to_y).sum(1)
    yy = (to_y * to_y).sum(1) + BLUR
    determinant = xx * yy - xy * xy
    mean = torch.stack([camera.fx * x / z + camera.cx, camera.fy * y / z + camera.cy], dim=1)
    # alpha falls to 1/255 at this many standard deviations; NaN where it never reaches it.
    reach = (2 * (gaussians.opacities / MIN_ALPHA).log()).sqrt()
    half = reach[:, None] * torch.stack([xx, yy], dim=1).sqrt()
    low, high = mean - half, mean + half
    size = torch.tensor([camera.width, camera.height])
    visible = (z >= NEAR) & (z <= FAR) & (determinant > 0) & determinant.isfinite()
    visible &= ((high > 0) & (low < size)).all(dim=1)
    order = visible.nonzero()[:, 0]
    order = order[z[order].argsort(stable=True)]
    conic = torch.stack([yy, -xy, xx], dim=1)[order] / determinant[order, None]
    opacities = gaussians.opacities[order]
    return _Splats(
        mean=mean[order],
        conic=conic.float(),
        low=low[order].float(),
        high=high[order].float(),
        log_opacity=opacities.log().float(),
        max_alpha=opacities.clamp(max=MAX_ALPHA).float(),
        rgb1=gaussians.rgb1[order],
    )


def _draw(splats: _Splats, camera: Camera) -> Tensor:
    """Blends the splats tile by tile into premultiplied r g b and coverage, (H, W, 4)."""
    picture = torch.zeros(camera.height, camera.width, 4)
    for top in range(0, camera.height, _TILE):
        rows = picture[top : top + _TILE]
        in_rows = (splats.low[:, 1] < top + _TILE) & (splats.high[:, 1] > top)
        strip = in_rows.nonzero()[:, 0]
        low, high = splats.low[strip, 0], splats.high[strip, 0]
        for left in range(0, camera.width, _TILE):
            indices = strip[(low < left + _TILE) & (high > left)]
            if len(indices):
                _blend(splats, indices, left, top, rows[:, left : left + _TILE])
    return picture


def _blend(splats: _Splats, indices: Tensor, left: int, top: int, tile: Tensor) -> None:
    """Adds splats, nearest first, to a tile (h, w, 4), until no pixel lets light through."""
    height, width = tile.shape[:2]
    xs = torch.arange(width) + (left + 0.5)
    ys = torch.arange(height) + (top + 0.5)
    light = torch.ones(height * width, 1)
    for chunk in torch.split(indices, _CHUNK):
        mean = splats.mean[chunk]
        dx = (xs[:, None] - mean[:, 0]).float()
        dy = (ys[:, None] - mean[:, 1]).float()
        xx, xy, yy = splats.conic[chunk].unbind(1)
        column = splats.log_opacity[chunk] - 0.5 * xx * dx * dx
        row = -0.5 * yy * dy * dy
        exponent = torch.addcmul(column, (xy * dy)[:, None], dx, value=-1).add_(row[:, None])
        # max_alpha also stands for "the exponent is never positive", which rounding can break.
        alpha = torch.minimum(exponent.exp_(), splats.max_alpha[chunk]).flatten(0, 1)
        alpha = torch.nn.functional.threshold(alpha, MIN_ALPHA, 0.0, inplace=True)
        passed = alpha.neg_().add_(1.0).cumprod(dim=1).mul_(light)
        weights = torch.cat([light, passed[:, :-1]], dim=1).sub_(passed)
        weights.masked_fill_(passed <= MIN_TRANSMITTANCE, 0.0)
        tile += (weights @ splats.rgb1[chunk]).view(height, width, 4)
        light = passed[:, -1:]
        if light.max() <= MIN_TRANSMITTANCE:
            return
