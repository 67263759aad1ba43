"""TripoSR: one image of an object to a field of density and colour. Our own network code."""

from generation.triposr.config import TripoSRConfig, ViTConfig
from generation.triposr.errors import CheckpointError
from generation.triposr.model import DENSITY_THRESHOLD, TripoSR
from generation.triposr.random_init import untrained
from generation.triposr.render import Camera
from generation.triposr.triplane import SceneCode

__all__ = [
    "DENSITY_THRESHOLD",
    "Camera",
    "CheckpointError",
    "SceneCode",
    "TripoSR",
    "TripoSRConfig",
    "ViTConfig",
    "untrained",
]
