"""Finds and reads a model's files: a folder or a Hugging Face hub repository, data only."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import torch
from torch import Tensor

from generation.lift.triposr.config import CONFIG_NAME, VIT_CONFIG_NAME
from generation.lift.triposr.errors import CheckpointError
from generation.weights.refusals import reason
from generation.weights.sources import HubModel

WEIGHT_NAMES = ("model.safetensors", "model.ckpt")


class CheckpointFiles(NamedTuple):
    """Where a model's files lie; `vit_config` is absent in the public model."""

    config: Path
    vit_config: Path | None
    weights: Path


def locate(path_or_repo: str | Path, revision: str | None = None) -> CheckpointFiles:
    """Finds a model's files, fetching them from the hub when no such folder exists.

    Args:
        path_or_repo: A folder, or a hub id such as "stabilityai/TripoSR".
        revision: Branch, tag or commit on the hub; ignored for a folder.

    Raises:
        CheckpointError: No such folder or repository, or a file is not in it.
    """
    folder = Path(path_or_repo)

    def find(name: str) -> Path | None:
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        return download(str(path_or_repo), name, revision, required=name == CONFIG_NAME)

    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path_or_repo)):
        raise CheckpointError(
            f"{path_or_repo} is neither a folder nor a hub id",
            fix=f"name a folder that holds {CONFIG_NAME} and {' or '.join(WEIGHT_NAMES)}",
        )
    config = find(CONFIG_NAME)
    if config is None:
        raise CheckpointError(f"{path_or_repo} holds no {CONFIG_NAME}")
    for name in WEIGHT_NAMES:
        if (weights := find(name)) is not None:
            return CheckpointFiles(config, find(VIT_CONFIG_NAME), weights)
    raise CheckpointError(f"{path_or_repo} holds neither {' nor '.join(WEIGHT_NAMES)}")


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
    # The readers report damage with whatever error their parser met; safetensors derives its
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
    config_name: str = CONFIG_NAME,
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
            f"{key} (found {value.dtype})"
            for key, value in found.items()
            if not value.is_floating_point()
        ],
        # Such weights have scales beside them, which nothing here reads.
        "narrower than 16 bits": [
            f"{key} (found {value.dtype})"
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
