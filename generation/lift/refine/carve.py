"""What a picture's silhouette says of all sides: outside it, nothing can be."""

import torch
from torch import Tensor

from generation.lift.refine.pose import Lens


@torch.no_grad()
def carve(positions: Tensor, alpha: Tensor, lens: Lens, view: Tensor) -> tuple[Tensor, Tensor]:
    """Moves what lies outside the silhouette to its edge, parallel to the picture.

    Moving closes what removing would tear open: the surface of a body that is too wide.

    Args:
        positions: (N, 3) in the world, in front of the camera.
        alpha: (H, H) coverage in the picture, of any size, not under 0.5 everywhere.
        lens: Of the picture.
        view: (4, 4) world to camera.

    Returns:
        Positions (N, 3), and how far each was moved as a share of the picture's side (N,).
    """
    from scipy import ndimage

    size = len(alpha)
    distances, nearest = ndimage.distance_transform_edt(
        (alpha < 0.5).cpu().numpy(), return_indices=True
    )
    seen = positions @ view[:3, :3].T + view[:3, 3]
    depth, zoom = seen[:, 2:], size / lens.size
    centre = seen.new_tensor(lens.centre)
    places = (seen[:, :2] / depth * lens.focal + centre) * zoom
    column, row = places.floor().long().clamp(0, size - 1).unbind(-1)
    moved = torch.from_numpy(distances).to(positions)[row, column] / size
    edge = torch.from_numpy(nearest).to(positions)[:, row, column].flip(0).T + 0.5
    edge = torch.cat([(edge / zoom - centre) / lens.focal * depth, depth], dim=1)
    inside = (edge - view[:3, 3]) @ view[:3, :3]
    return torch.where(moved[:, None] > 0, inside, positions), moved
