"""DreamGaussian (Tang et al. 2023), written new: Gaussians optimised against a picture.

The known view says how the front must look; a guidance, if there is one, what the other sides may
look like (score distillation, Poole et al. 2022). Nothing here depends on how an engine runs it.
"""

from generation.lift.dreamgaussian.dream import Dream, KnownView
from generation.lift.dreamgaussian.guidance import Guidance

__all__ = ["Dream", "Guidance", "KnownView"]
