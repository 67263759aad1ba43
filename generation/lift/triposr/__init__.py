"""TripoSR: one image of an object to a field of density and colour. Our own network code."""

from generation.lift.triposr.config import TripoSRConfig, ViTConfig
from generation.lift.triposr.model import DENSITY_THRESHOLD, TripoSR
from generation.lift.triposr.triplane import SceneCode
from generation.weights.checkpoint import CheckpointError

__all__ = [
    "DENSITY_THRESHOLD",
    "CheckpointError",
    "SceneCode",
    "TripoSR",
    "TripoSRConfig",
    "ViTConfig",
]
