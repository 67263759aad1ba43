"""Gaussians that nobody sees go where others are too large: densification that keeps the number."""

import math
from typing import Any

import torch

from generation.lift.dreamgaussian.densify import Densifier
from generation.lift.dreamgaussian.gaussians import TrainedGaussians
from generation.rendering.differentiable import rotation_matrices

_EVERY = 15
_FIRST, _LAST = 0.15, 0.85
_IDLE = 0.03
"""Opacity under which a Gaussian is moved."""
_APART, _SMALLER = 0.8, 1.4
"""How far halves lie from the middle, in standard deviations, and by how much they are smaller."""


class Relocation(Densifier):
    """Moves idle Gaussians onto others, which they halve; cheap enough for a CPU.

    The idea is that of 3D Gaussian splatting as Markov chain Monte Carlo (Kheradmand et al. 2024):
    the number stays, so the time of a step does too.

    Args:
        steps: Of the whole run.
    """

    def __init__(self, steps: int) -> None:
        self._from, self._until = _FIRST * steps, _LAST * steps

    @torch.no_grad()
    def after(
        self,
        gaussians: TrainedGaussians,
        step: int,
        info: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """See `Densifier.after`."""
        if step % _EVERY or not self._from <= step <= self._until:
            return
        own = gaussians.parameters
        opacities, scales = own["opacities"].sigmoid(), own["scales"].exp()
        # What a Gaussian covers: its opacity times the product of its two longer axes.
        area = scales.sort(dim=-1).values[:, 1:].prod(-1)
        covers = torch.where(opacities < _IDLE, 0.0, opacities * area)
        idle = (opacities < _IDLE).nonzero()[:, 0]
        count = min(len(idle), int((covers > 0).sum()))
        if not count:
            return
        idle = idle[:count]
        halved = torch.multinomial(covers.cpu(), count, generator=generator).to(idle.device)
        axes = rotation_matrices(own["quats"][halved]) * scales[halved, None]
        drawn = torch.randn(count, 3, generator=generator).to(axes)
        apart = _APART * torch.einsum("nab,nb->na", axes, drawn)
        for value in own.values():
            value[idle] = value[halved]
        own["means"][idle] += apart
        own["means"][halved] -= apart
        for half in (idle, halved):
            own["scales"][half] -= math.log(_SMALLER)
        for optimiser in gaussians.optimisers.values():
            for state in optimiser.state.values():
                state["exp_avg"][idle] = 0
                state["exp_avg_sq"][idle] = state["exp_avg_sq"][halved]
