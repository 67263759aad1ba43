import numpy as np
import pytest
import torch

from generation.lift.triposr import DENSITY_THRESHOLD, TripoSR
from generation.lift.triposr.mesh import surface_points
from scripts.benchmarks.random_triposr import untrained


@pytest.mark.parametrize("seed", range(3))
def test_the_field_is_one_closed_coloured_object(tiny: TripoSR, seed: int) -> None:
    model = untrained(tiny.config, seed)
    rng = np.random.default_rng(seed)
    code = model.scene_codes(rng.random((40, 40, 3), dtype=np.float32))
    grid = model.density_grid(code, 40)
    assert grid.isfinite().all()
    inside = grid > DENSITY_THRESHOLD
    assert 0.02 < inside.float().mean() < 0.3
    assert not any(inside.select(axis, end).any() for axis in range(3) for end in (0, -1))
    surface = surface_points(grid, DENSITY_THRESHOLD, model.radius)
    _, rgb = model.query(surface, code)
    assert (rgb.std(0) > 0.01).all()


def test_the_image_changes_the_object(tiny: TripoSR) -> None:
    model = untrained(tiny.config)
    dark, light = (
        model.density_grid(model.scene_codes(np.full((9, 9, 3), v, np.float32)), 16)
        for v in (0.1, 0.9)
    )
    assert (dark.log() - light.log()).abs().max() > 0.05


def test_the_seed_decides_the_weights(tiny: TripoSR) -> None:
    first, again, other = (untrained(tiny.config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["decoder.layers.0.weight"], other["decoder.layers.0.weight"])


def test_global_random_state_is_left_alone(tiny: TripoSR) -> None:
    before = torch.get_rng_state()
    untrained(tiny.config)
    assert torch.equal(torch.get_rng_state(), before)
