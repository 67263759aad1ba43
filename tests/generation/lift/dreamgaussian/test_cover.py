"""Few Gaussians become many discs on their surface, and idle ones go where they are of use."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.errors import GenerationError
from generation.lift.dreamgaussian.cover import cover
from generation.lift.dreamgaussian.gaussians import TrainedGaussians
from generation.lift.dreamgaussian.relocate import Relocation
from generation.packing import LARGEST_SIDE
from generation.rendering.differentiable import rotation_matrices
from generation.scoring.validity import check

CPU = torch.device("cpu")


def ball(count: int = 400) -> TrainedGaussians:
    made = TrainedGaussians(count, torch.Generator().manual_seed(0), CPU)
    with torch.no_grad():
        made.parameters["opacities"].fill_(0.0)
        right = made.parameters["means"][:, 0] > 0
        made.parameters["colors"][right] = torch.tensor([1.0, -1.0, -1.0])
        made.parameters["colors"][~right] = torch.tensor([-1.0, -1.0, 1.0])
    return made


def test_a_ball_is_covered_with_discs_that_lie_on_it() -> None:
    made = cover(ball().parameters, 7_500)
    cloud = made.to_cloud()
    assert len(cloud.positions) == 7_500
    assert check(cloud).passed
    assert np.ptp(cloud.positions, axis=0).max() == pytest.approx(LARGEST_SIDE, rel=1e-4)
    radius = made.positions.norm(dim=-1)
    assert float((radius > 0.6).float().mean()) > 0.95
    thin = rotation_matrices(made.rotations)[..., 2]
    facing = (thin * made.positions / radius[:, None]).sum(-1).abs()
    assert float(facing.median()) > 0.9
    assert float(made.log_scales[:, 2].max()) < float(made.log_scales[:, :2].min())
    right = made.positions[:, 0] > 0.2
    assert float(made.colors_dc[right, 0].median()) == pytest.approx(1.0, abs=0.02)
    left = made.positions[:, 0] < -0.2
    assert float(made.colors_dc[left, 2].median()) == pytest.approx(1.0, abs=0.02)


def test_the_same_gaussians_are_covered_in_the_same_way() -> None:
    small = ball()
    with torch.no_grad():
        small.parameters["opacities"].fill_(2.0)
        small.parameters["scales"].sub_(1.0)
    first, again, other = (cover(small.parameters, 7_000, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.positions, again.positions)
    assert not torch.equal(first.positions, other.positions)


@pytest.mark.parametrize("logit", [-12.0, -9.0, -3.0])
def test_gaussians_that_are_all_faint_have_a_surface_too(logit: float) -> None:
    """Where the picture shows little, they come nowhere near the usual density."""
    made, usual = ball(), cover(ball().parameters, 7_500)
    with torch.no_grad():
        made.parameters["opacities"].fill_(logit)
    found = cover(made.parameters, 7_500)
    assert check(found.to_cloud()).passed
    for cloud in (found, usual):
        assert float(cloud.positions.norm(dim=-1).median()) == pytest.approx(0.75, abs=0.05)


def test_a_few_dense_gaussians_do_not_hide_the_faint_rest() -> None:
    made = ball()
    with torch.no_grad():
        made.parameters["opacities"].fill_(-3.5)
        made.parameters["means"][:, 1] *= 6
        made.parameters["means"][:4] *= 0.01
        made.parameters["opacities"][:4] = 3.0
    sides = np.ptp(cover(made.parameters, 7_500).to_cloud().positions, axis=0)
    assert sides[[0, 2]].max() < 0.5 * sides[1]


def test_one_gaussian_is_enough_and_none_is_an_answer() -> None:
    made = ball()
    with torch.no_grad():
        made.parameters["opacities"].fill_(-30.0)
        made.parameters["opacities"][7] = -5.0
    assert check(cover(made.parameters, 7_500).to_cloud()).passed
    with torch.no_grad():
        made.parameters["opacities"].fill_(-30.0)
    with pytest.raises(GenerationError, match="nothing that can be seen"):
        cover(made.parameters, 7_500)


def relocated(step: int) -> tuple[dict[str, Tensor], TrainedGaussians]:
    """A ball of which the last 40 Gaussians are idle, before and after a step of 100."""
    made = ball()
    torch.autograd.backward([made.cloud().positions.sum() + made.cloud().opacities.sum()])
    made.step(0.0)
    with torch.no_grad():
        made.parameters["opacities"][-40:] = -9.0
    before = {name: x.detach().clone() for name, x in made.parameters.items()}
    Relocation(100).after(made, step, {}, torch.Generator().manual_seed(3))
    return before, made


def test_idle_gaussians_halve_others() -> None:
    before, made = relocated(30)
    after = made.parameters
    assert float(after["opacities"].detach().min()) > -1
    assert len(after["means"]) == len(before["means"])
    moved = (after["scales"] != before["scales"]).any(-1)
    assert int(moved.sum()) == 80
    assert after["scales"][moved].detach().numpy() == pytest.approx(
        float(before["scales"][0, 0]) - math.log(1.4), abs=1e-5
    )
    still = ~moved
    for name, value in after.items():
        assert torch.equal(value[still], before[name][still])
    # Halves lie on either side of where the whole one was.
    halved = moved.clone()
    halved[-40:] = False
    pairs = (after["means"][-40:, None] + after["means"][halved]).detach() / 2
    nearest = (pairs[:, :, None] - before["means"][halved]).abs().amax(-1).amin(dim=(1, 2))
    assert float(nearest.max()) < 1e-5
    (state,) = made.optimisers["means"].state.values()
    assert not state["exp_avg"][-40:].any()


@pytest.mark.parametrize("step", [0, 10, 31, 90])
def test_gaussians_stay_at_other_steps(step: int) -> None:
    before, made = relocated(step)
    for name, value in made.parameters.items():
        assert torch.equal(value, before[name])
