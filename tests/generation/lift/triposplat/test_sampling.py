"""Sampling: the public code's numbers, and what a caller may do between two steps."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from generation.lift.triposplat import Sampler, SamplerState, TripoSplat
from generation.lift.triposplat.sampling import times
from tests.generation.lift.triposplat.conftest import Tensors, off_by


def sampler(tiny: TripoSplat, given: Tensors, *, steps: int = 4, guidance: float = 3.0) -> Sampler:
    features = given["feature1"], given["feature2"]
    return Sampler(tiny.flow, *features, steps=steps, guidance=guidance)


def begin(given: Tensors) -> SamplerState:
    return SamplerState(given["latent_noise"], given["camera_noise"], 0)


@pytest.fixture
def tokens(tiny: TripoSplat) -> Iterator[dict[str, list[int]]]:
    """How many tokens passed through the first block of each kind, pass by pass."""
    seen: dict[str, list[int]] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def count(module: object, inputs: tuple[Tensor, ...], output: object) -> None:
            seen.setdefault(name, []).append(inputs[0].shape[1])

        return count

    names = ("blocks", "noise_refiner", "context_refiner")
    handles = [getattr(tiny.flow, name)[0].register_forward_hook(hook_of(name)) for name in names]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("name", "steps", "shift"), [("4_shift3", 4, 3), ("10_shift3", 10, 3), ("20_shift1", 20, 1)]
)
def test_times(sampler_reference: Tensors, name: str, steps: int, shift: float) -> None:
    found = torch.tensor(times(steps, shift), dtype=torch.float64)
    torch.testing.assert_close(found, sampler_reference[f"t_{name}"], rtol=0, atol=1e-15)
    assert found[0] == 1
    assert found[-1] == 0


@pytest.mark.parametrize(("name", "guidance"), [("guided3", 3.0), ("unguided", 1.0)])
def test_every_state_of_a_run(
    tiny: TripoSplat,
    sampler_reference: Tensors,
    tokens: dict[str, list[int]],
    name: str,
    guidance: float,
) -> None:
    given = sampler_reference
    run = sampler(tiny, given, guidance=guidance)
    state = begin(given)
    for index in range(run.steps):
        state = run.step(state)
        assert state.index == index + 1
        assert off_by(state.latent, given[f"{name}_latent_steps"][index + 1]) <= 2e-5
        assert off_by(state.camera, given[f"{name}_camera_steps"][index + 1]) <= 2e-5
    assert off_by(state.latent, given[f"{name}_latent"]) <= 2e-5
    guided = guidance > 1
    assert len(tokens["blocks"]) == given[f"{name}_passes"]
    # Without condition, one token counts for all: latent, condition, camera.
    assert tokens["blocks"] == ([64 + 17 + 1, 64 + 1 + 1] if guided else [64 + 17 + 1]) * 4
    # What does not depend on the condition is computed once a step.
    assert tokens["noise_refiner"] == [64] * 4
    # The picture's tokens, and that of no picture, were computed once, not once per step.
    assert tokens["context_refiner"] == ([17, 1] if guided else [17])


def test_noise_is_drawn_after_the_encoders_from_one_generator(
    tiny: TripoSplat, sampler_reference: Tensors
) -> None:
    given = sampler_reference
    generator = torch.Generator().manual_seed(int(given["seed"]))
    torch.randn(given["vae_noise"].shape, generator=generator)
    state = sampler(tiny, given).start(generator)
    assert torch.equal(state.latent, given["latent_noise"])
    assert torch.equal(state.camera, given["camera_noise"])
    assert state.index == 0


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(
    tiny: TripoSplat, sampler_reference: Tensors
) -> None:
    one, other = (sampler(tiny, sampler_reference) for _ in range(2))
    halfway = one.step(one.step(begin(sampler_reference)))
    before = halfway.latent.clone()
    finished = other.step(other.step(halfway))
    again = one.step(one.step(halfway))
    assert torch.equal(halfway.latent, before)
    assert torch.equal(finished.latent, again.latent)
    assert off_by(finished.latent, sampler_reference["guided3_latent"]) <= 2e-5
    whole = one.sample(torch.Generator().manual_seed(3))
    state = other.start(torch.Generator().manual_seed(3))
    while state.index < other.steps:
        state = other.step(state)
    assert torch.equal(state.latent, whole)


def test_a_run_ends_early_as_if_its_last_step_had_led_to_the_end(
    tiny: TripoSplat, sampler_reference: Tensors
) -> None:
    run = sampler(tiny, sampler_reference)
    first = begin(sampler_reference)
    with pytest.raises(ValueError, match="still noise"):
        run.finish(first)
    state = run.step(first)
    velocity, _ = run.velocities(first)
    torch.testing.assert_close(run.finish(state), first.latent - velocity * run.times[0])
    while state.index < run.steps:
        state = run.step(state)
    assert torch.equal(run.finish(state), state.latent)
    with pytest.raises(ValueError, match="all 4 steps are done"):
        run.step(state)


def test_two_pictures_at_once_are_sampled_as_one_by_one(
    tiny: TripoSplat, flow_reference: Tensors
) -> None:
    features = [flow_reference["batch2_feature1"], flow_reference["batch2_feature2"]]
    both = Sampler(tiny.flow, *features, steps=2)
    state = both.start(torch.Generator().manual_seed(1))
    assert state.latent.shape == (2, 64, 8)
    found, _ = both.velocities(state)
    for item in range(2):
        alone = Sampler(tiny.flow, *(x[item, None] for x in features), steps=2)
        of_one = SamplerState(state.latent[item, None], state.camera[item, None], 0)
        assert off_by(found[item, None], alone.velocities(of_one)[0]) <= 2e-5


def test_a_run_without_a_step_is_refused(tiny: TripoSplat, sampler_reference: Tensors) -> None:
    with pytest.raises(ValueError, match="steps is 0, expected at least 1"):
        sampler(tiny, sampler_reference, steps=0)
