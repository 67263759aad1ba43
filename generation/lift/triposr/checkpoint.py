"""Finds a model's files: in a folder or a repository of the Hugging Face hub."""

import re
from pathlib import Path
from typing import NamedTuple

from generation.lift.triposr.config import CONFIG_NAME, VIT_CONFIG_NAME
from generation.weights.checkpoint import CheckpointError, download

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
