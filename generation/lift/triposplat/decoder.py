"""From a latent to Gaussians: an octree network draws points, a second one fills them.

Both networks read points as tokens and the latent as their context. Source: the public facts of
TripoSplat (VAST 2026). Attribute names are the checkpoint's keys.
"""

import torch
from torch import Tensor, nn

from generation.lift.triposplat.config import TripoSplatConfig
from generation.lift.triposplat.gaussians import GaussianDecoder, PointGaussians
from generation.lift.triposplat.octree import OctreeDecoder, Uniform, sample_points

_STREAM = 0x0C7EE
"""Keeps the decoder's random numbers apart from the sampler's, whose seed is the same."""


class SplatDecoder(nn.Module):
    """Both networks of the decoder. Weights may be float32, bfloat16 or float16."""

    def __init__(self, config: TripoSplatConfig) -> None:
        super().__init__()
        self.config = config
        self.octree = OctreeDecoder(config.octree)
        self.gs = GaussianDecoder(config.gaussian)

    @torch.inference_mode()
    def decode(self, latent: Tensor, count: int, seed: int) -> PointGaussians:
        """Makes Gaussians of a latent, as many as are wanted.

        Args:
            latent: (1, L, latent channels).
            count: Most Gaussians; rounded down to a multiple of the Gaussians of a point.
            seed: 0..2**64 - 1; one seed gives the same points on one device.

        Raises:
            ValueError: The count is smaller than the Gaussians of a point.
        """
        generator = torch.Generator().manual_seed(seed ^ _STREAM)
        return self.decode_drawn(
            latent, count, lambda *shape: torch.rand(shape, generator=generator)
        )

    @torch.inference_mode()
    def decode_drawn(self, latent: Tensor, count: int, uniform: Uniform) -> PointGaussians:
        """Decodes with given random numbers; see `decode` and `octree.sample_points`."""
        per_point = self.config.gaussian.gaussians_per_point
        if count < per_point:
            raise ValueError(f"count is {count}, expected at least {per_point}, the least there is")
        latent = latent.to(self.gs.in_proj.weight.device)
        points = sample_points(self.octree, latent, count // per_point, uniform)
        return self.gs.gaussians(points, self.gs(points[None], latent)[0])
