"""Fills the scorer's networks from files that must fit them key by key."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from generation.weights.checkpoint import CheckpointError, check_state_dict, read_state_dict
from generation.weights.store import FETCH_AGAIN
from protocol.errors import SetupError


def read_weights(file: Path) -> dict[str, Tensor]:
    """Reads tensors alone; see `generation.weights.checkpoint.read_state_dict`.

    Raises:
        SetupError: The file is damaged, or holds more than tensors.
    """
    try:
        return read_state_dict(file)
    except CheckpointError as error:
        raise SetupError(error.problem, fix=FETCH_AGAIN) from error


def fill(network: nn.Module, file: Path, weights: Mapping[str, Tensor]) -> None:
    """Gives a network that was built on meta its weights, every one and no other.

    Args:
        network: Its parameters are replaced; eval mode and no gradients afterwards.
        file: What messages call the file.
        weights: By key.

    Raises:
        SetupError: A key is missing or surplus, or a shape or kind of number is wrong.
    """
    require_keys(file, weights, network.state_dict())
    network.load_state_dict(weights, strict=True, assign=True)
    network.eval().requires_grad_(False)


def require_keys(file: Path, weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares keys, shapes and kinds of number.

    Raises:
        SetupError: They differ; names the first of them.
    """
    try:
        check_state_dict(file, weights, expected)
    except CheckpointError as error:
        raise SetupError(error.problem, fix=FETCH_AGAIN) from error
