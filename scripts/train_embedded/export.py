"""Writes the trained networks in the layouts that the pipeline loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from generation.lift.dreamgaussian import denoiser
from generation.lift.triposplat import TripoSplat
from generation.lift.triposplat.config import CONFIG_NAME
from generation.lift.triposplat.encoder_config import EncoderConfig
from generation.lift.triposplat.features import DINO_NAME, VAE_NAME, PictureEncoders
from generation.lift.triposr import TripoSR
from generation.quiet import quiet_libraries
from generation.scoring import embedded
from scripts.train_embedded import text, train_saliency

FLUX, BACKGROUND, SCORER = "flux", "background.onnx", "scorer"
TRIPOSR, TRIPOSPLAT, DREAMGAUSSIAN = "triposr", "triposplat", "dreamgaussian"


def write_vae(vae: Any, folder: Path) -> None:
    """Writes the autoencoder alone, as `write_flux` will write it: float16."""
    vae = vae.to("cpu", torch.float16, memory_format=torch.contiguous_format)
    _replace(folder, vae.save_pretrained)


def read_vae(folder: Path, device: torch.device) -> Any:
    """Reads what `write_vae` wrote; float32, without gradients."""
    with quiet_libraries():
        from diffusers import AutoencoderKL

        vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    vae.register_to_config(_name_or_path="")  # would tell readers of the export about this machine
    return vae.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


def write_flux(networks: nn.ModuleDict, vae: Any, out: Path) -> None:
    """Writes a folder for `FluxPipeline.from_pretrained`, float16."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae.to("cpu", memory_format=torch.contiguous_format),
        text_encoder=networks["clip"].cpu(),
        tokenizer=text.clip_tokenizer(),
        text_encoder_2=networks["t5"].cpu(),
        tokenizer_2=text.t5_tokenizer(),
        transformer=networks["transformer"].cpu(),
    ).to(torch.float16)
    _replace(out / FLUX, pipeline.save_pretrained)


def write_triposr(model: TripoSR, out: Path) -> None:
    """Writes a folder for `TripoSR.from_pretrained`, float16."""
    _replace(out / TRIPOSR, model.cpu().half().save_pretrained)


def write_triposplat(
    model: TripoSplat, encoders: PictureEncoders, config: EncoderConfig, out: Path
) -> None:
    """Writes a folder for `TripoSplat` and `PictureEncoders.from_pretrained`, float16."""

    def write(draft: Path) -> None:
        model.cpu().half().save_pretrained(draft)
        content = model.config.as_dict() | config.model_dump(mode="json")
        text = json.dumps(content, indent=2) + "\n"
        (draft / CONFIG_NAME).write_text(text, encoding="utf-8")
        for name, network in ((DINO_NAME, encoders.dino), (VAE_NAME, encoders.vae)):
            state = network.cpu().half().state_dict()
            floats = {key: x.contiguous() for key, x in state.items() if x.is_floating_point()}
            save_file(floats, draft / name)

    _replace(out / TRIPOSPLAT, write)


def write_guidance(network: denoiser.DenoiserNetwork, out: Path) -> None:
    """Writes a folder for `ViewDenoiser.from_pretrained`, float16."""
    _replace(out / DREAMGAUSSIAN, lambda draft: denoiser.write(network, draft))


def write_saliency(model: train_saliency.SaliencyNet, out: Path) -> None:
    """Writes the ONNX file for rembg."""
    out.mkdir(parents=True, exist_ok=True)
    train_saliency.export(model, out / BACKGROUND)


def write_scorer(network: embedded.ScorerNetwork, config: embedded.ScorerConfig, out: Path) -> None:
    """Writes a folder for `generation.scoring.embedded.read`, float16."""
    _replace(out / SCORER, lambda draft: embedded.write(network, config, draft))


def _replace(folder: Path, write: Callable[[Path], object]) -> None:
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    write(draft)
    shutil.rmtree(folder, ignore_errors=True)
    for file in draft.rglob("*.safetensors"):
        file.chmod(0o644)
    draft.rename(folder)
