"""The octree network and its points against the public code's; what resampling promises."""

import copy

import pytest
import torch

from generation.lift.triposplat import SplatDecoder, TripoSplat
from generation.lift.triposplat.octree import OctreeDecoder, resample, sample_points
from tests.generation.lift.triposplat.conftest import Tensors, off_by, recorded


@pytest.fixture(scope="module")
def octree(tiny: TripoSplat) -> OctreeDecoder:
    return tiny.decoder.octree


@pytest.mark.parametrize(("prefix", "levels"), [("l8", 8), ("l3", 3)])
def test_points_counts_and_logits_level_by_level(
    octree: OctreeDecoder, octree_reference: Tensors, prefix: str, levels: int
) -> None:
    given = octree_reference
    network = copy.copy(octree)
    network.config = octree.config.model_copy(update={"levels": levels})
    passes: list[tuple[torch.Tensor, ...]] = []
    handle = network.register_forward_hook(
        lambda _, inputs, logits: passes.append((*inputs, logits))
    )
    count = int(given[f"{prefix}_num_points"])
    points = sample_points(network, given["latent"], count, recorded(given, prefix, levels))
    handle.remove()
    assert len(passes) == levels
    for level, (centres, resolution, _, logits) in enumerate(passes, start=1):
        of_level = f"{prefix}_{level}"
        assert torch.equal(centres[0], given[f"{of_level}_parent"])
        assert torch.equal(resolution, given[f"{of_level}_resolution"])
        assert off_by(logits[0], given[f"{of_level}_logits"]) <= 2e-5
        dealt = resample(
            logits[0].softmax(dim=-1),
            given[f"{of_level}_counts"],
            given[f"{of_level}_draws_by_row"],
        )
        assert torch.equal(dealt, given[f"{of_level}_sampled"])
    assert torch.equal(points, given[f"{prefix}_points"])


def test_inside_one_pass(octree: OctreeDecoder, octree_reference: Tensors) -> None:
    given = octree_reference
    inputs: dict[str, torch.Tensor] = {}
    names = {
        "input_layer": "pass_embedded",
        "l_embedder": "pass_level_sinusoid",
        "blocks.1": "pass_block0_out",
    }
    handles = [
        octree.get_submodule(module).register_forward_pre_hook(
            lambda _, given, name=name: inputs.update({name: given[0]})
        )
        for module, name in names.items()
    ]
    resolution = given["pass_resolution"][None]
    logits = octree(given["pass_parent"], resolution, given["latent"])
    for handle in handles:
        handle.remove()
    for name, found in inputs.items():
        assert off_by(found, given[name]) <= 1e-5, name
    assert off_by(logits, given["pass_logits"]) <= 2e-5
    assert off_by(logits.softmax(dim=-1), given["pass_probs"]) <= 1e-5


def test_a_batch_of_two_with_different_levels(
    octree: OctreeDecoder, octree_reference: Tensors
) -> None:
    parent, resolution, latent = (
        octree_reference[f"batch2_{name}"] for name in ("parent", "resolution", "latent")
    )
    found = octree(parent, resolution, latent)
    assert off_by(found, octree_reference["batch2_logits"]) <= 2e-5


def test_resampling_of_rows_that_are_no_distribution(octree_reference: Tensors) -> None:
    given = octree_reference
    found = resample(
        given["resample_probs"], given["resample_counts"], given["resample_draws_by_row"]
    )
    assert torch.equal(found, given["resample_out"])


def test_a_child_gets_its_share_and_never_what_has_no_chance() -> None:
    generator = torch.Generator().manual_seed(5)
    probabilities = (4 * torch.randn(200, 8, generator=generator)).softmax(dim=-1)
    probabilities[:, 2] = 0
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    counts = torch.randint(0, 500, (200,), generator=generator)
    dealt = resample(probabilities, counts, torch.rand(200, generator=generator))
    assert torch.equal(dealt.sum(dim=-1), counts)
    assert (dealt - probabilities * counts[:, None]).abs().max() < 1.001
    assert dealt[:, 2].sum() == 0


def test_the_seed_reaches_the_points(tiny: TripoSplat, octree_reference: Tensors) -> None:
    decoder: SplatDecoder = tiny.decoder
    latent = octree_reference["latent"]
    torch.manual_seed(1)
    one = decoder.decode(latent, 400, seed=7)
    torch.manual_seed(2)
    again = decoder.decode(latent, 400, seed=7)
    other = decoder.decode(latent, 400, seed=8)
    assert torch.equal(one.positions, again.positions)
    assert torch.equal(one.scales, again.scales)
    assert not torch.equal(one.positions, other.positions)
    decoder.decode(latent, 4, seed=2**64 - 1)


@pytest.mark.parametrize(("count", "made"), [(4, 4), (7, 4), (400, 400), (403, 400)])
def test_as_many_gaussians_as_fit_into_the_count(
    tiny: TripoSplat, octree_reference: Tensors, count: int, made: int
) -> None:
    found = tiny.decoder.decode(octree_reference["latent"], count, seed=0)
    assert len(found.positions) == made


def test_a_count_without_a_point_is_refused(tiny: TripoSplat, octree_reference: Tensors) -> None:
    with pytest.raises(ValueError, match="count is 3, expected at least 4"):
        tiny.decoder.decode(octree_reference["latent"], 3, seed=0)
