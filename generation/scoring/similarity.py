"""Likeness of neighbouring views as a validator measures it: SSIM and LPIPS.

Both are computed in float32, also where other networks are not: SSIM subtracts nearly equal
numbers, and LPIPS is small. Functions only, no metric objects, so that nothing grows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from generation.scoring.checkpoints import fill, read_weights, require_keys
from generation.scoring.pixels import for_lpips, to_unit
from generation.scoring.statistics import mean, without_outliers

_SIGMA, _TAPS = 1.5, 11
_C1, _C2 = 0.01**2, 0.03**2
"""Of values in 0..1."""


def pair_mean(values: NDArray[np.floating]) -> float:
    """Draws one number from those of all pairs of views.

    A negative one that the rule for outliers leaves makes it NaN, a zero makes it 0.
    """
    return mean(without_outliers(np.sort(values.astype(np.float64))), "geometric_mean")


class Ssim(nn.Module):
    """Structural similarity (Wang et al. 2004) of every view and the next; the last has the first.

    What two pairs share is computed once, where torchmetrics blurs five pictures a pair: 3.7 ms
    instead of 5.5 on an H100.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        distance = torch.arange(_TAPS, dtype=torch.float32) - _TAPS // 2
        window = torch.exp(-((distance / _SIGMA) ** 2) / 2)
        window /= window.sum()
        kernel = torch.outer(window, window).expand(3, 1, -1, -1).contiguous()
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        """Maps (V, H, W, 3) uint8, at least 6 pixels a side, to (V,) float32, -1..1."""
        x = F.pad(to_unit(views), (_TAPS // 2,) * 4, mode="reflect")
        means, squares = self._blurred(x), self._blurred(x * x)
        products = self._blurred(x * x.roll(-1, 0))
        squared_means, mean_products = means * means, means * means.roll(-1, 0)
        variances = (squares - squared_means).clamp(min=0)
        upper = (2 * mean_products + _C1) * (2 * (products - mean_products) + _C2)
        lower = (squared_means + squared_means.roll(-1, 0) + _C1) * (
            variances + variances.roll(-1, 0) + _C2
        )
        return (upper / lower).flatten(1).mean(dim=1)

    def _blurred(self, pictures: Tensor) -> Tensor:
        """Maps (V, 3, H + 10, W + 10) to (V, 3, H, W)."""
        return F.conv2d(pictures, self.kernel, groups=3)


class Lpips(nn.Module):
    """Perceptual distance (Zhang et al. 2018) of every view and the next; the last has the first.

    The network is torchmetrics': AlexNet, and heads that are part of its package. It sees each view
    once, where calling it for each pair would show it every view twice.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, views: Tensor) -> Tensor:
        """Maps (V, H, W, 3) uint8 to (V,) float32, at least 0."""
        network = self.network
        distance = torch.zeros(len(views), device=views.device)
        layers = network.net(network.scaling_layer(2 * for_lpips(views) - 1))
        for features, head in zip(layers, network.lins, strict=True):
            scaled = features / (features.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()
            distance = distance + head((scaled - scaled.roll(-1, 0)).square()).mean(dim=(1, 2, 3))
        return distance

    @classmethod
    def load(cls, file: Path) -> "Lpips":
        """Loads AlexNet's weights onto the CPU.

        Args:
            file: torchvision's file, or one of its `features` alone.

        Raises:
            SetupError: The file is damaged or of another network.
        """
        from torchmetrics.functional.image import lpips
        from torchvision.models import alexnet

        found = read_weights(file)
        heads = read_weights(Path(lpips.__file__).parent / "lpips_models" / "alex.pth")
        with torch.device("meta"):
            # Both without weights: torchvision would download them.
            expected = alexnet(weights=None).state_dict()
            network = lpips._NoTrainLpips(pretrained=False, pnet_rand=True)
        network.scaling_layer = lpips.ScalingLayer()  # Its constants are in no file.
        if not any(key.startswith("classifier.") for key in found):
            expected = {key: v for key, v in expected.items() if key.startswith("features.")}
        require_keys(file, found, expected)

        def weight(key: str) -> Tensor:
            if key.startswith("net.slice"):
                return found[f"features.{key.split('.', 2)[2]}"]
            return heads[key.replace("lins.", "lin")]

        fill(network, file, {key: weight(key) for key in network.state_dict()})
        return cls(network)
