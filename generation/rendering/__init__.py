"""The validator's camera and the pictures it takes of a Gaussian cloud."""

from generation.rendering.cameras import Camera, orbit_camera, validator_camera
from generation.rendering.preview import preview_grid
from generation.rendering.validator import as_seen_by_validator
from generation.rendering.views import render_layers, render_views

__all__ = [
    "Camera",
    "as_seen_by_validator",
    "orbit_camera",
    "preview_grid",
    "render_layers",
    "render_views",
    "validator_camera",
]
