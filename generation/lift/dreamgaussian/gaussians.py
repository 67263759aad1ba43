"""The Gaussians that are optimised: their parameters, their optimisers, and the finished cloud."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from generation.errors import GenerationError
from generation.lift.dreamgaussian.schedule import FIRST_RATE, RATES
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering.device_cloud import DeviceCloud
from generation.scoring.validity import MAX_TRANSPARENT_SHARE, MIN_GAUSSIANS
from protocol.gaussians import SH_C0

START_RADIUS, START_OPACITY = 0.5, 0.1
_PRUNED_OPACITY = 0.01
_MOST_STRAY = 0.005
"""Share of the Gaussians beyond which the box is not looked for, on either side of an axis."""
_FAINT = 0.5 / 255
"""Opacity that SPZ rounds to 0, so that a validator counts the Gaussian as transparent."""
_MOST_FAINT = MAX_TRANSPARENT_SHARE - 0.1


class TrainedGaussians:
    """Gaussians as parameters, in the form that gsplat's strategies change.

    Args:
        count: How many there are at the start, spread evenly in a ball.
        generator: Of the task, on the CPU.
        device: Where they live.
        pace: What the learning rates are multiplied by, but for that of positions.

    Attributes:
        parameters: means (N, 3), scales (N, 3) log, quats (N, 4), opacities (N,) logits and colors
            (N, 3) coefficients.
        optimisers: One Adam for each.
    """

    def __init__(
        self, count: int, generator: torch.Generator, device: torch.device, pace: float = 1.0
    ) -> None:
        directions = F.normalize(torch.randn(count, 3, generator=generator), dim=-1)
        distances = torch.rand(count, 1, generator=generator) ** (1 / 3)
        # The mean distance to a neighbour among points spread evenly in a ball.
        spacing = START_RADIUS * (4 * math.pi / 3 / count) ** (1 / 3)
        start = {
            "means": START_RADIUS * distances * directions,
            "scales": torch.full((count, 3), math.log(spacing)),
            # A validator refuses a cloud in which nothing is turned, even of balls.
            "quats": F.normalize(torch.randn(count, 4, generator=generator), dim=-1),
            "opacities": torch.full((count,), math.log(START_OPACITY / (1 - START_OPACITY))),
            "colors": torch.zeros(count, 3),
        }
        self.parameters = {name: nn.Parameter(x.to(device)) for name, x in start.items()}
        rates = {"means": FIRST_RATE} | {name: pace * rate for name, rate in RATES.items()}
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam([{"params": x, "lr": rates[name]}], eps=1e-15)
            for name, x in self.parameters.items()
        }

    def cloud(self) -> DeviceCloud:
        """What is rendered, with gradients."""
        own = self.parameters
        return DeviceCloud(
            positions=own["means"],
            scales=own["scales"].exp(),
            rotations=own["quats"],
            opacities=own["opacities"].sigmoid(),
            rgb=own["colors"] * SH_C0 + 0.5,
        )

    def step(self, position_rate: float) -> None:
        """Moves along the gradients."""
        for group in self.optimisers["means"].param_groups:
            group["lr"] = position_rate
        for optimiser in self.optimisers.values():
            optimiser.step()

    def forget_gradients(self) -> None:
        """Gives the gradients of the step before back."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def limit_opacity(self, most: float) -> None:
        """Makes all Gaussians transparent, so that only those that are needed come back.

        gsplat 1.5.3 has this among its strategies, but never does it.
        """
        logits = self.parameters["opacities"]
        logits.clamp_(max=math.log(most / (1 - most)))
        for state in self.optimisers["opacities"].state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name].zero_()

    @contextmanager
    def restored_if_it_fails(self) -> Iterator[None]:
        """Has the same parameters and states of optimisers as before if adding or removing fails.

        That replaces one parameter after another, and may run out of memory on the way.
        """
        parameters = dict(self.parameters)
        states = {
            name: {parameter: dict(state) for parameter, state in optimiser.state.items()}
            for name, optimiser in self.optimisers.items()
        }
        try:
            yield
        except Exception:
            self.parameters.update(parameters)
            for name, optimiser in self.optimisers.items():
                (group,) = optimiser.param_groups
                group["params"] = [parameters[name]]
                optimiser.state.clear()
                optimiser.state.update(states[name])
            raise

    def require_finite(self) -> None:
        """Checks the parameters.

        Raises:
            GenerationError: A number is not finite.
        """
        if not all(x.isfinite().all() for x in self.parameters.values()):
            raise GenerationError("the optimisation came to numbers that are not finite")

    @torch.no_grad()
    def finish(self, most: int | None = None) -> GaussianTensors | None:
        """The cloud as it is now, as a validator wants it.

        What cannot be seen and what strays far from the rest is left out, but never so much that a
        validator would refuse the cloud. The box of the centres is centred, and its largest side
        becomes `LARGEST_SIDE`.

        Args:
            most: How many to keep at most, the most opaque ones; at least `MIN_GAUSSIANS`, or None.

        Returns:
            None where a validator would refuse the cloud: there are too few, or too few to be seen.

        Raises:
            GenerationError: See `require_finite`.
        """
        self.require_finite()
        own = {name: x.detach().clone() for name, x in self.parameters.items()}
        kept = _most_useful(own["means"], own["opacities"])
        if len(kept) < MIN_GAUSSIANS:
            return None
        if most is not None and len(kept) > most:
            kept = kept[own["opacities"][kept].topk(most).indices]
        own = {name: x[kept] for name, x in own.items()}
        low, high = torch.aminmax(own["means"], dim=0)
        scale = LARGEST_SIDE / (high - low).max().clamp_min(1e-6)
        quats = F.normalize(own["quats"], dim=-1)
        return GaussianTensors(
            positions=(own["means"] - (low + high) / 2) * scale,
            log_scales=own["scales"] + scale.log(),
            rotations=torch.where(quats[:, :1] < 0, -quats, quats),
            opacity_logits=own["opacities"],
            colors_dc=own["colors"],
        )


def _most_useful(means: Tensor, logits: Tensor) -> Tensor:
    """Indices of Gaussians that can be seen and lie among the others.

    Where those are too few for a validator, faint ones come with them, unless these are too many.
    """
    stray = int(_MOST_STRAY * len(means))
    ordered = means.sort(dim=0).values
    low, high = ordered[stray], ordered[-1 - stray]
    margin = 0.1 * (high - low).max()
    inside = ((means >= low - margin) & (means <= high + margin)).all(-1)
    opacities = logits.sigmoid()
    useful = inside & (opacities >= _PRUNED_OPACITY)
    if useful.sum() < MIN_GAUSSIANS and (opacities[inside] < _FAINT).float().mean() <= _MOST_FAINT:
        useful = inside
    return useful.nonzero()[:, 0]
