"""Densification that runs out of memory half way leaves Gaussians that can go on."""

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from generation.lift.dreamgaussian.densify import Densifier
from generation.lift.dreamgaussian.gaussians import TrainedGaussians


class Doubling:
    """A strategy that has each Gaussian twice, replaced as gsplat does it: name by name."""

    fails = True

    def __init__(self, **thresholds: Any) -> None:
        self.grow_grad2d = 0.0

    def initialize_state(self, scene_scale: float) -> dict[str, Any]:
        return {"grad2d": None}

    def step_post_backward(
        self,
        parameters: dict[str, nn.Parameter],
        optimisers: dict[str, torch.optim.Optimizer],
        state: dict[str, Any],
        step: int,
        info: dict[str, Any],
        packed: bool,
    ) -> None:
        state["grad2d"] = torch.zeros(2 * len(parameters["means"]))
        for name, old in list(parameters.items()):
            if name == "opacities" and Doubling.fails:
                raise torch.OutOfMemoryError("out of memory")
            parameters[name] = nn.Parameter(torch.cat([old.detach(), old.detach()]))
            own = optimisers[name].state.pop(old)
            for key in ("exp_avg", "exp_avg_sq"):
                own[key] = torch.cat([own[key], own[key]])
            optimisers[name].param_groups[0]["params"] = [parameters[name]]
            optimisers[name].state[parameters[name]] = own


def step(made: TrainedGaussians) -> None:
    cloud = made.cloud()
    torch.autograd.backward([sum((x.square().sum() for x in vars(cloud).values()), Tensor([0.0]))])
    made.step(1e-3)
    made.forget_gradients()


def test_gaussians_have_one_number_after_memory_ran_out_while_they_were_added(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strategies = SimpleNamespace(DefaultStrategy=Doubling)
    monkeypatch.setitem(sys.modules, "gsplat", SimpleNamespace(strategy=strategies))
    monkeypatch.setitem(sys.modules, "gsplat.strategy", strategies)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: nullcontext())
    densifier = Densifier.on(torch.device("cuda"), 10)
    generator = torch.Generator().manual_seed(0)
    made = TrainedGaussians(30, generator, torch.device("cpu"))
    step(made)
    info, before = {"means2d": torch.zeros(1)}, dict(made.parameters)
    with pytest.raises(torch.OutOfMemoryError):
        densifier.after(made, 1, info, generator)
    assert all(made.parameters[name] is before[name] for name in before)
    assert vars(densifier)["_state"] == {"grad2d": None}
    step(made)
    monkeypatch.setattr(Doubling, "fails", False)
    densifier.after(made, 1, info, generator)
    assert {len(x) for x in made.parameters.values()} == {60}
    step(made)
