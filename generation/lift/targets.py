"""Cut-outs as tensors that rendered pictures are compared with."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def target_of(rgba: NDArray[np.uint8], size: int) -> Tensor:
    """A cut-out (S, S, 4) as (size, size, 4) float32 on the CPU.

    These are colours premultiplied by alpha, and alpha.
    """
    pixels = torch.from_numpy(rgba).permute(2, 0, 1)[None].float() / 255
    pixels = torch.cat([pixels[:, :3] * pixels[:, 3:], pixels[:, 3:]], dim=1)
    small = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0)
