"""More Gaussians where views pull at them, fewer where nothing is seen: gsplat's strategy."""

import math
from typing import Any

import torch

from generation.lift.dreamgaussian.gaussians import TrainedGaussians

_EXTENT = 4.0
_EVERY = 50
_GROWN_GRADIENT = 0.01


class Densifier:
    """Changes where Gaussians are, or how many."""

    @staticmethod
    def on(device: torch.device, steps: int, most: int | None = None) -> "Densifier":
        """The one that fits a device and a run; it adds nothing where there are `most`."""
        if device.type == "cuda":
            return _GsplatDensifier(most)
        from generation.lift.dreamgaussian.relocate import Relocation

        return Relocation(steps)

    def before(self, gaussians: TrainedGaussians, step: int, info: dict[str, Any]) -> None:
        """Is called between rendering and the backward pass."""

    def after(
        self,
        gaussians: TrainedGaussians,
        step: int,
        info: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        """Is called once the optimisers have moved."""


class _GsplatDensifier(Densifier):
    """gsplat's default strategy with DreamGaussian's thresholds."""

    def __init__(self, most: int | None) -> None:
        from gsplat.strategy import DefaultStrategy

        self._most = math.inf if most is None else most
        # Its own reset of opacities never happens in gsplat 1.5.3 and must not elsewhere.
        self._strategy = DefaultStrategy(
            prune_opa=0.01,
            grow_grad2d=_GROWN_GRADIENT,
            grow_scale3d=0.01,
            prune_scale3d=0.1,
            refine_start_iter=0,
            refine_every=_EVERY,
            reset_every=10**9,
        )
        self._state = self._strategy.initialize_state(scene_scale=_EXTENT)

    def before(self, gaussians: TrainedGaussians, step: int, info: dict[str, Any]) -> None:
        self._strategy.step_pre_backward(
            gaussians.parameters, gaussians.optimisers, self._state, step, info
        )

    def after(
        self,
        gaussians: TrainedGaussians,
        step: int,
        info: dict[str, Any],
        generator: torch.Generator,
    ) -> None:
        full = len(gaussians.parameters["means"]) >= self._most
        self._strategy.grow_grad2d = math.inf if full else _GROWN_GRADIENT
        # Where halves of a split Gaussian go, gsplat draws from torch's own generator.
        devices, state = [info["means2d"].device], dict(self._state)
        try:
            with torch.random.fork_rng(devices), gaussians.restored_if_it_fails():
                torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
                self._strategy.step_post_backward(
                    gaussians.parameters,
                    gaussians.optimisers,
                    self._state,
                    step,
                    info,
                    packed=False,
                )
        except Exception:
            self._state.update(state)
            raise
