from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from generation.lift.triposr import SceneCode, TripoSR

GOLDEN = Path(__file__).parents[3] / "golden" / "triposr"

Arrays = Mapping[str, NDArray[np.float32]]


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def tiny() -> TripoSR:
    return TripoSR.from_pretrained(GOLDEN / "tiny")


@pytest.fixture(scope="session")
def expected() -> Arrays:
    with np.load(GOLDEN / "tiny" / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def image() -> NDArray[np.float32]:
    array: NDArray[np.float32] = np.load(GOLDEN / "tiny" / "input.npy")
    return array


@pytest.fixture(scope="session")
def code(expected: Arrays) -> SceneCode:
    return torch.from_numpy(expected["scene_codes"][0])
