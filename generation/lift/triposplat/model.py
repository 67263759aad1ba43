"""TripoSplat (VAST 2026): its networks, and the files that they are loaded from."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from generation.lift.triposplat.config import CONFIG_NAME, PUBLIC, TripoSplatConfig
from generation.lift.triposplat.decoder import SplatDecoder
from generation.lift.triposplat.flow import FlowTransformer
from generation.weights.checkpoint import (
    CheckpointError,
    check_state_dict,
    download,
    read_state_dict,
)

FLOW_NAME, DECODER_NAME = "flow.safetensors", "decoder.safetensors"
PUBLIC_FLOW_NAME = "diffusion_models/triposplat_fp16.safetensors"
PUBLIC_DECODER_NAME = "vae/triposplat_vae_decoder_fp16.safetensors"
_NAMES = {FLOW_NAME: PUBLIC_FLOW_NAME, DECODER_NAME: PUBLIC_DECODER_NAME}


class TripoSplat(nn.Module):
    """The flow transformer and the decoder; the picture's encoders are in `features`.

    Args:
        config: Shapes and constants; the default is the public model's.

    Attributes:
        flow: Samples latents, see `sampling.Sampler`.
        decoder: Makes Gaussians of them, see `SplatDecoder.decode` and `splats.to_gaussians`.
    """

    def __init__(self, config: TripoSplatConfig = PUBLIC) -> None:
        super().__init__()
        self.config = config
        self.flow = FlowTransformer(config.flow)
        self.decoder = SplatDecoder(config)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "TripoSplat":
        """Loads a model, in eval mode and without gradients.

        Args:
            path_or_repo: A folder or a hub id such as "VAST-AI/TripoSplat". If it holds a
                `config.json`, `flow.safetensors` and `decoder.safetensors` lie beside it; if not,
                it is the public model, with the names that its files have on the hub.
            revision: Branch, tag or commit on the hub; ignored for a folder.
            device: Where to put the weights.
            dtype: Floating-point type of the weights.

        Raises:
            CheckpointError: A file is absent, damaged, or does not fit the config.
        """
        config, files = locate(path_or_repo, _NAMES, revision)
        with torch.device("meta"):
            model = cls(TripoSplatConfig.load(config) if config else PUBLIC)
        for network, file in zip((model.flow, model.decoder), files, strict=True):
            state = read_state_dict(file)
            check_state_dict(file, state, network.state_dict(), config_name=CONFIG_NAME)
            state = {key: value.to(device, dtype) for key, value in state.items()}
            network.load_state_dict(state, strict=True, assign=True)
        # The flow's position table is in no file.
        return model.to(device, dtype).requires_grad_(False).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json`, `flow.safetensors` and `decoder.safetensors` into a folder."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.config.as_dict(), indent=2)
        (folder / CONFIG_NAME).write_text(config + "\n", encoding="utf-8")
        save_file(self.flow.state_dict(), folder / FLOW_NAME)
        save_file(self.decoder.state_dict(), folder / DECODER_NAME)


def locate(
    path_or_repo: str | Path, names: Mapping[str, str], revision: str | None = None
) -> tuple[Path | None, list[Path]]:
    """Finds files of a model, fetching them from the hub when no such folder exists.

    Args:
        path_or_repo: See `TripoSplat.from_pretrained`.
        names: The public model's names of files by their names beside a `config.json`.
        revision: See `TripoSplat.from_pretrained`.

    Returns:
        The config, None for the public model, and the files in the order of their names.

    Raises:
        CheckpointError: No such folder or repository, or a file is not in it.
    """
    folder = Path(path_or_repo)
    if not folder.is_dir() and not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(path_or_repo)):
        raise CheckpointError(
            f"{path_or_repo} is neither a folder nor a hub id",
            fix=f"name a folder that holds {', '.join(names)} and {CONFIG_NAME}, or "
            "VAST-AI/TripoSplat",
        )

    def find(name: str, *, required: bool) -> Path | None:
        if not folder.is_dir():
            return download(str(path_or_repo), name, revision, required=required)
        if (folder / name).is_file():
            return folder / name
        if required:
            raise CheckpointError(
                f"{folder} holds no {name}",
                fix="fetch the model again (the public one: VAST-AI/TripoSplat)",
            )
        return None

    config = find(CONFIG_NAME, required=False)
    found = [find(name, required=True) for name in (names if config else names.values())]
    return config, [file for file in found if file is not None]
