from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.lift.triposplat import TripoSplat

GOLDEN = Path(__file__).parents[3] / "golden" / "triposplat"

Tensors = Mapping[str, Tensor]
Recorded = Callable[..., Tensor]


def tensors_of(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name) as arrays:
        return {key: torch.from_numpy(array) for key, array in arrays.items()}


def off_by(found: Tensor, expected: Tensor | NDArray[np.float32]) -> float:
    """The largest difference of two float32 tensors of one shape."""
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    return (found.double() - expected.double()).abs().max().item()


def recorded(reference: Tensors, prefix: str, levels: int) -> Recorded:
    """The random numbers that were drawn when a reference was made, in the order of the cells."""
    draws = [reference[f"{prefix}_{level}_draws_by_row"] for level in range(1, levels + 1)]
    left = iter([*draws, reference[f"{prefix}_jitter"]])

    def uniform(*shape: int) -> Tensor:
        drawn = next(left)
        assert tuple(drawn.shape) == shape
        return drawn

    return uniform


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny() -> TripoSplat:
    return TripoSplat.from_pretrained(GOLDEN / "tiny")


@pytest.fixture(scope="session")
def flow_reference() -> Tensors:
    return tensors_of("tiny/flow.npz")


@pytest.fixture(scope="session")
def sampler_reference() -> Tensors:
    return tensors_of("tiny/sampler.npz") | tensors_of("tiny/cond.npz")


@pytest.fixture(scope="session")
def octree_reference() -> Tensors:
    return tensors_of("tiny/octree.npz")


@pytest.fixture(scope="session")
def gaussians_reference() -> Tensors:
    return tensors_of("tiny/gaussians.npz")


@pytest.fixture(scope="session")
def tables_reference() -> Tensors:
    return tensors_of("tables/tables.npz")
