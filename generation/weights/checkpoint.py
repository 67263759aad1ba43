"""Reads a model's files, data only, and compares them with the network that they are for."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor

from generation.weights.refusals import reason
from generation.weights.sources import HubModel
from protocol.errors import SetupError


class CheckpointError(SetupError):
    """A model's files are absent, damaged or of another model.

    Args:
        problem: The file, the key, what was found and what was expected.
        fix: What to type or change.
    """

    def __init__(
        self,
        problem: str,
        *,
        fix: str = "fetch the model again (public ones: stabilityai/TripoSR, VAST-AI/TripoSplat)",
    ) -> None:
        super().__init__(problem, fix=fix)


def download(repo: str, name: str, revision: str | None, *, required: bool) -> Path | None:
    """Fetches one file from the hub, unless the cache has it.

    Returns:
        Its path; None if it is not required and neither the hub nor the cache has it.

    Raises:
        CheckpointError: It cannot be had.
    """
    from huggingface_hub import get_token, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repo, name, revision=revision))
    # The network can fail with any of several libraries' errors.
    except Exception as cause:
        # Also raised when the hub cannot be reached and the file is not in the cache.
        if isinstance(cause, EntryNotFoundError) and not required:
            return None
        source = HubModel(repo=repo, files=(name,), licence="")
        why = reason(source, cause, get_token())
        raise CheckpointError(
            f"{repo}: {name} cannot be had from the hub: {why.problem}",
            fix=f"{why.fix}; or give a folder with the files",
        ) from cause


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Reads tensors from a `.safetensors` file or a `torch.save` of a state dict.

    Pickles are read with `weights_only`: a file that would run code is refused.

    Raises:
        CheckpointError: The file is truncated, of another kind, or holds more than tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        raise CheckpointError(
            f"{file} is no plain file of tensors, and was not run: {_first_line(cause)}"
        ) from cause
    # The readers report damage with the error that their parser met; safetensors derives its
    # own from Exception alone.
    except Exception as cause:
        size = file.stat().st_size if file.is_file() else 0
        damage = "truncated" if isinstance(cause, EOFError | BadZipFile) else "damaged or truncated"
        raise CheckpointError(f"{file} ({size} bytes) is {damage}: {_first_line(cause)}") from cause
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{file} holds {type(content).__name__}, expected a dict of key to tensor"
        )
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{file}: key {key!r} is {type(value).__name__}, expected a tensor"
            )
    return content


def check_state_dict(
    file: Path,
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    config_name: str = "config",
) -> None:
    """Compares keys, shapes and kinds of number.

    Args:
        file: What messages call the file.
        found: What it holds.
        expected: What the network that the config describes needs.
        config_name: What messages call the config.

    Raises:
        CheckpointError: Names each kind of difference with its first keys and shapes.
    """
    problems = {
        "missing": [
            f"{key} (expected {tuple(value.shape)})"
            for key, value in expected.items()
            if key not in found
        ],
        "surplus": [
            f"{key} (found {tuple(value.shape)})"
            for key, value in found.items()
            if key not in expected
        ],
        "misshapen": [
            f"{key} (found {tuple(found[key].shape)}, expected {tuple(value.shape)})"
            for key, value in expected.items()
            if key in found and found[key].shape != value.shape
        ],
        "not floating-point": [
            f"{key} (found {value.dtype}, expected a float)"
            for key, value in found.items()
            if not value.is_floating_point()
        ],
        # Such weights have scales beside them, which nothing here reads.
        "narrower than 16 bits": [
            f"{key} (found {value.dtype}, expected float16, bfloat16 or float32)"
            for key, value in found.items()
            if value.is_floating_point() and value.itemsize < 2
        ],
    }
    said = [
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''}"
        for kind, keys in problems.items()
        if keys
    ]
    if said:
        raise CheckpointError(
            f"{file} does not fit the config: {'; '.join(said)}",
            fix=f"use the {config_name} that belongs to these weights, or fetch both again",
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
