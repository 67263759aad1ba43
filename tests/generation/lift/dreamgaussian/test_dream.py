"""Gaussians follow the picture, can be finished after any step, and are those of their seed."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.errors import GenerationError
from generation.lift.dreamgaussian import Dream, KnownView
from generation.lift.dreamgaussian.gaussians import TrainedGaussians
from generation.lift.dreamgaussian.guidance import distil
from generation.lift.dreamgaussian.schedule import noise_time, pace, position_rate, resolution
from generation.packing import LARGEST_SIDE, GaussianTensors
from generation.rendering import render_layers
from generation.scoring.validity import check

CPU = torch.device("cpu")


def disc(rgb: tuple[int, int, int] = (200, 40, 40), radius: int = 26) -> NDArray[np.uint8]:
    y, x = np.mgrid[:64, :64] - 31.5
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[x * x + y * y < radius * radius] = (*rgb, 255)
    return rgba


class Painter:
    """A guidance that wants every other side green."""

    size = 16

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def begin(self, rgba: NDArray[np.uint8]) -> Any:
        return rgba.shape

    def elevation(self, known: Any, usual: float) -> float:
        return usual

    def loss(
        self,
        known: Any,
        pictures: Tensor,
        azimuths: Tensor,
        elevations: Tensor,
        time: float,
        generator: torch.Generator,
    ) -> Tensor:
        assert known == (64, 64, 4)
        assert pictures.shape == (1, 4, 16, 16)
        self.seen.append((float(azimuths), float(elevations), time))
        green = pictures[:, 3:].detach() * pictures.new_tensor([0.1, 0.8, 0.1, 1.0])[:, None, None]
        return distil(pictures, pictures - green)


def dream(steps: int, guidance: Painter | None = None, **changes: Any) -> Dream:
    given: dict[str, Any] = {"sizes": (16, 24, 32), "count": 7_500, "seed": 5, "device": CPU}
    return Dream(KnownView(disc()), guidance, steps=steps, **given | changes)


def test_the_front_becomes_what_the_picture_shows() -> None:
    made = dream(100, count=600)
    made.run(100)
    view = made._known.camera(0.0, 0.0, 32)
    own = made.gaussians.cloud()
    cloud = replace(own, **{name: x.detach() for name, x in vars(own).items()}).to_cloud()
    rgb, coverage = render_layers(cloud, [view], backend="cpu")
    wanted = made._known.target(32).numpy()
    assert np.abs(coverage[0] - wanted[..., 3]).mean() < 0.05
    assert np.abs(rgb[0] - wanted[..., :3]).mean() < 0.04


@pytest.mark.parametrize("done", [0, 1, 5])
def test_the_cloud_is_valid_after_any_step(done: int) -> None:
    made = dream(6, Painter())
    made.run(done)
    cloud = made.result().to_cloud()
    assert check(cloud).passed
    assert np.ptp(cloud.positions, axis=0).max() == pytest.approx(LARGEST_SIDE, rel=1e-4)


def test_a_seed_makes_one_object_however_its_steps_are_sliced() -> None:
    def made(slices: tuple[int, ...], seed: int) -> GaussianTensors:
        one = dream(5, Painter(), count=300, seed=seed)
        torch.manual_seed(sum(slices))  # Torch's own generator has no part in it.
        for steps in slices:
            one.run(steps)
        assert one.done == 5
        return one.result()

    together, apart, other = made((5,), 3), made((1, 2, 9), 3), made((5,), 4)
    assert torch.equal(together.positions, apart.positions)
    assert torch.equal(together.colors_dc, apart.colors_dc)
    assert not torch.equal(together.positions, other.positions)


def test_the_guidance_paints_what_the_picture_does_not_show() -> None:
    guidance = Painter()
    guided, alone = dream(40, guidance, count=600), dream(40, count=600)
    greens = []
    for one in (guided, alone):
        one.run(40)
        behind = one.result()
        far = behind.positions[:, 2] < -0.3
        greens.append(float((behind.colors_dc[far, 1] - behind.colors_dc[far, 0]).mean()))
    assert greens[0] > greens[1] + 0.2
    azimuths, elevations, times = zip(*guidance.seen, strict=True)
    assert min(azimuths) < -math.pi / 2
    assert max(azimuths) > math.pi / 2
    assert max(map(abs, elevations)) == pytest.approx(math.radians(30), abs=0.1)
    assert times == tuple(sorted(times, reverse=True))


@pytest.mark.parametrize("seen", [1, 40, 2_000, 6_900])
def test_many_gaussians_of_which_few_are_seen_make_a_valid_cloud(seen: int) -> None:
    """A validator refuses a cloud that is transparent for the most part."""
    made = dream(1, count=7_500)
    with torch.no_grad():
        made.gaussians.parameters["opacities"][seen:] = -9.0
    cloud = made.result().to_cloud()
    assert check(cloud).passed
    # While that is allowed, faint ones stay, and nothing is made anew.
    assert (len(cloud) == 7_500) == (seen == 6_900)


@pytest.mark.parametrize(("logit", "count"), [(-3.0, 7_500), (-9.0, 7_500), (-3.0, 300)])
def test_gaussians_that_nobody_sees_are_not_finished(logit: float, count: int) -> None:
    gaussians = TrainedGaussians(count, torch.Generator().manual_seed(0), CPU)
    with torch.no_grad():
        gaussians.parameters["opacities"].fill_(logit)
    finished = gaussians.finish()
    assert (finished is None) == (logit < -8 or count < 7_000)


def test_a_stray_gaussian_does_not_shrink_the_object() -> None:
    gaussians = TrainedGaussians(7_200, torch.Generator().manual_seed(0), CPU)
    with torch.no_grad():
        gaussians.parameters["means"][0] = torch.tensor([40.0, 0.0, 0.0])
    cloud = gaussians.finish()
    assert cloud is not None
    assert len(cloud.positions) == 7_199
    assert float(cloud.positions.std(0).min()) > 0.2


def test_opacities_are_limited_and_their_momentum_forgotten() -> None:
    gaussians = TrainedGaussians(50, torch.Generator().manual_seed(0), CPU)
    torch.autograd.backward([gaussians.cloud().opacities.sum()])
    gaussians.step(1e-3)
    gaussians.limit_opacity(0.01)
    assert float(gaussians.cloud().opacities.detach().max()) == pytest.approx(0.01, rel=1e-4)
    (state,) = gaussians.optimisers["opacities"].state.values()
    assert not state["exp_avg"].any()


def test_the_gradient_of_a_distillation_is_the_given_one() -> None:
    value = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    torch.autograd.backward([distil(value, torch.tensor([[0.5, -1.0, math.nan]]))])
    assert value.grad is not None
    assert value.grad.tolist() == [[0.5, -1.0, 0.0]]


def test_schedules_go_from_rough_to_fine() -> None:
    assert position_rate(0) == pytest.approx(1e-2)
    assert position_rate(1) == pytest.approx(2e-4)
    assert [resolution(p, (1, 2, 3)) for p in (0.0, 0.29, 0.3, 0.6, 0.99)] == [1, 1, 2, 3, 3]
    assert [noise_time(p) for p in (0.0, 0.4, 1.0)] == pytest.approx([0.98, 0.6, 0.02])


def test_short_runs_take_larger_steps() -> None:
    assert [pace(steps) for steps in (50, 200, 250, 500, 2000)] == [2.5, 2.5, 2.0, 1.0, 1.0]
    rates = []
    for steps in (50, 2000):
        made = dream(steps, count=50).gaussians
        rates.append([made.optimisers[name].param_groups[0]["lr"] for name in ("means", "colors")])
    assert rates == [[0.01, 0.025], [0.01, 0.01]]


@pytest.mark.cuda
def test_gsplat_densifies_and_a_seed_makes_one_object_on_cuda() -> None:
    made = [dream(120, Painter(), device=torch.device("cuda"), count=7_500) for _ in range(2)]
    for one in made:
        one.run(120)
    assert len(made[0].gaussians.parameters["means"]) != 7_500
    assert check(made[0].result().to_cloud()).passed
    counts = {len(one.gaussians.parameters["means"]) for one in made}
    # Sums of gradients come in any order, so that single Gaussians may differ.
    assert max(counts) - min(counts) <= 0.02 * max(counts)


@pytest.mark.parametrize("name", ["means", "scales", "quats", "opacities", "colors"])
@pytest.mark.parametrize("count", [300, 7_500])
def test_numbers_that_are_not_finite_are_an_answer_and_no_crash(name: str, count: int) -> None:
    made = dream(2, count=count)
    made.run(1)
    with torch.no_grad():
        made.gaussians.parameters[name][5] = math.nan
    with pytest.raises(GenerationError, match="not finite"):
        made.result()
