"""TripoSplat (VAST 2026): one picture of an object to 3D Gaussians. Our own network code.

A flow transformer denoises a latent while it looks at the picture's features. An octree network
draws points from the latent, coarse cells first; a second network makes 32 Gaussians of every
point. Nothing here depends on how an engine runs it.
"""

from generation.lift.triposplat.config import PUBLIC, TripoSplatConfig
from generation.lift.triposplat.decoder import SplatDecoder
from generation.lift.triposplat.flow import FlowTransformer
from generation.lift.triposplat.model import TripoSplat
from generation.lift.triposplat.sampling import Sampler, SamplerState

__all__ = [
    "PUBLIC",
    "FlowTransformer",
    "Sampler",
    "SamplerState",
    "SplatDecoder",
    "TripoSplat",
    "TripoSplatConfig",
]
