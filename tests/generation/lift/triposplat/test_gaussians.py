"""The Gaussian network and its attributes against the public code's numbers."""

import pytest
import torch

from generation.lift.triposplat import PUBLIC, TripoSplat
from generation.lift.triposplat.gaussians import GaussianDecoder, PointGaussians
from generation.lift.triposplat.tables import hammersley
from tests.generation.lift.triposplat.conftest import Tensors, off_by, recorded


@pytest.fixture(scope="module")
def network(tiny: TripoSplat) -> GaussianDecoder:
    return tiny.decoder.gs


@pytest.fixture(scope="module")
def made(network: GaussianDecoder, gaussians_reference: Tensors) -> PointGaussians:
    points, latent = gaussians_reference["points"], gaussians_reference["latent"]
    return network.gaussians(points[0], network(points, latent)[0])


def test_features_and_what_leads_to_them(
    network: GaussianDecoder, gaussians_reference: Tensors
) -> None:
    given = gaussians_reference
    outputs: dict[str, torch.Tensor] = {}
    names = {
        "blocks.0.self_attn": "block0_self_attn",
        "blocks.0.cross_attn": "block0_cross_attn",
        "blocks.0": "block0_out",
        "blocks.1": "block1_out",
    }
    handles = [
        network.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, name=name: outputs.update({name: output})
        )
        for module, name in names.items()
    ]
    features = network(given["points"], given["latent"])
    for handle in handles:
        handle.remove()
    for name, found in outputs.items():
        assert off_by(found, given[name]) <= 1e-5, name
    assert off_by(features, given["features"]) <= 2e-5


def test_attributes(made: PointGaussians, gaussians_reference: Tensors) -> None:
    given = gaussians_reference
    assert off_by(made.positions, given["xyz"]) <= 2e-6
    assert off_by(made.opacity_logits.sigmoid()[:, None], given["opacity"]) <= 2e-6
    assert off_by(made.scales / given["scaling"], torch.ones(192, 3)) <= 1e-5
    assert off_by(made.rotations, given["rotation"]) <= 2e-6
    assert off_by(made.colors_dc[:, None], given["raw_features_dc"]) <= 2e-5


def test_exported_values(made: PointGaussians, gaussians_reference: Tensors) -> None:
    positions, normals, dc, logits, log_scales, rotations = torch.split(
        gaussians_reference["ply_identity"], [3, 3, 3, 1, 3, 4], dim=-1
    )
    assert not normals.any()
    assert off_by(made.positions, positions) <= 1e-6
    assert off_by(made.colors_dc, dc) <= 2e-5
    assert off_by(made.opacity_logits[:, None], logits) <= 1e-5
    assert off_by(made.scales.log(), log_scales) <= 1e-5
    found = torch.nn.functional.normalize(made.rotations, dim=-1)
    found = torch.where(found[:, :1] < 0, -found, found)
    assert off_by(found, rotations) <= 1e-4


def test_from_latent_to_gaussians(
    tiny: TripoSplat, octree_reference: Tensors, gaussians_reference: Tensors
) -> None:
    uniform = recorded(octree_reference, "l8", 8)
    made = tiny.decoder.decode_drawn(octree_reference["latent"], 192, uniform)
    assert off_by(made.positions, gaussians_reference["xyz"]) <= 2e-6


def test_buffers_by_formula(tables_reference: Tensors) -> None:
    small = PUBLIC.gaussian.model_copy(
        update={"width": 32, "heads": 1, "head_dim": 32, "blocks": 1}
    )
    network = GaussianDecoder(small)
    assert off_by(hammersley(32).float(), tables_reference["hammersley"]) <= 1e-6
    assert off_by(network.points_offset_perturbation, tables_reference["perturbation"]) <= 1e-6
    assert off_by(network.base_offset_scale, tables_reference["base_offset_scale"]) <= 1e-6


def test_a_network_that_says_nothing_spreads_small_faint_gaussians_round_the_point() -> None:
    config = PUBLIC.gaussian.model_copy(
        update={"width": 32, "heads": 1, "head_dim": 32, "blocks": 1}
    )
    point = torch.tensor([[0.5, 0.25, 0.75]])
    made = GaussianDecoder(config).gaussians(point, torch.zeros(1, config.outputs))
    expected = point - 0.5 + 0.05 * (hammersley(32).float() - 0.5)
    assert off_by(made.positions, expected) <= 1e-6
    torch.testing.assert_close(made.scales, torch.full((32, 3), 0.004**2 + 0.0009**2).sqrt())
    torch.testing.assert_close(made.opacity_logits.sigmoid(), torch.full((32,), 0.1))
    assert torch.equal(made.rotations, torch.tensor([[1.0, 0, 0, 0]]).expand(32, 4))


def test_opacity_logits_stay_finite(network: GaussianDecoder) -> None:
    features = torch.full((1, network.config.outputs), 1e4)
    assert network.gaussians(torch.zeros(1, 3), features).opacity_logits.isfinite().all()
    assert network.gaussians(torch.zeros(1, 3), -features).opacity_logits.isfinite().all()
