"""One picture of a cloud for people: the grid that the duel judge sees."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from generation.rendering.cameras import VALIDATOR_SIZE
from generation.rendering.views import Backend, render_views
from protocol.gaussians import GaussianCloud

_GAP = 5


def preview_grid(
    cloud: GaussianCloud, size: int = VALIDATOR_SIZE, *, backend: Backend = "auto"
) -> Image.Image:
    """Renders views 1 and 5 above views 9 and 13, as the validator shows them to the duel judge.

    Args:
        cloud: The cloud as a miner answers it.
        size: Width and height of each of the four pictures, in pixels.
        backend: See `generation.rendering.views.render_layers`.

    Returns:
        An RGB picture, 2 x size + 5 wide and high.

    Raises:
        ValueError: A bad size, or a cloud that cannot be rescaled.
    """
    return combine_views(render_views(cloud, size=size, backend=backend))


def combine_views(views: NDArray[np.uint8]) -> Image.Image:
    """Sets four pictures (4, S, S, 3) in reading order, a black cross of 5 pixels between them.

    Raises:
        ValueError: The array has another shape.
    """
    size = views.shape[1] if views.ndim == 4 else 0
    if views.shape != (4, size, size, 3):
        raise ValueError(f"the grid takes four square pictures (4, S, S, 3), got {views.shape}")
    grid = np.zeros((2 * size + _GAP, 2 * size + _GAP, 3), dtype=np.uint8)
    starts = (0, size + _GAP)
    corners = [(top, left) for top in starts for left in starts]
    for picture, (top, left) in zip(views, corners, strict=True):
        grid[top : top + size, left : left + size] = picture
    return Image.fromarray(grid)
