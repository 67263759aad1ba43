"""Whether another recipe makes the same thing as the plain one, network by network.

Each recipe records what its networks answer to the same inputs; the recordings are compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from generation.lift.triposr.splats import extract_cloud
from generation.pictures.framing import composite_on_grey
from generation.pictures.prompt_memory import Embedding
from generation.pictures.text_to_image import TextToImage
from generation.rendering import render_views
from generation.settings import GenerationSettings
from protocol import ply
from scripts.benchmarks.networks import Networks

PROMPTS = ("a blue cube", "a red sports car", "a detailed dragon statue", "a wooden chair")
VIEWS, SIZE = (1, 5, 9, 13), 256
LARGEST_PSNR = 100.0
"""Stands for equal pictures, whose PSNR is infinite."""

_TENSORS, _CLOUD = "likeness.pt", "cloud.ply"

Inputs = dict[str, Tensor]


@torch.no_grad()
def record(
    networks: Networks,
    settings: GenerationSettings,
    folder: Path,
    reference: Path | None = None,
) -> None:
    """Writes the networks' outputs to a folder.

    Args:
        networks: Warm.
        settings: What they were loaded with.
        folder: Where to write.
        reference: Folder of an earlier recording, whose inputs of the transformer are used again;
            when None, those of the first picture are recorded and used.
    """
    draw = networks.pictures.flux
    pictures = [np.asarray(draw(prompt, seed)) for seed, prompt in enumerate(PROMPTS)]
    embeddings = [draw.embed(prompt) for prompt in PROMPTS]
    steps = _inputs_of_a_picture(draw) if reference is None else _read(reference)["inputs"]
    transformer, device = draw.pipeline.transformer, embeddings[0][0].device
    outputs = [
        transformer(**{key: value.to(device) for key, value in step.items()}, return_dict=False)[0]
        for step in steps
    ]
    code = networks.triposr.scene_codes(composite_on_grey(_cutout()))
    cloud = extract_cloud(networks.triposr, code, settings.splats)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "pictures": torch.from_numpy(np.stack(pictures)),
        "embeddings": _on_host(embeddings),
        "inputs": [{key: value.cpu() for key, value in step.items()} for step in steps],
        "outputs": torch.stack(outputs).cpu(),
        "scene_code": code.cpu(),
    }
    if reference is None:
        content["exact_embeddings"] = _on_host(_exact_embeddings(draw))
    torch.save(content, folder / _TENSORS)
    (folder / _CLOUD).write_bytes(ply.encode(cloud))


def compare(reference: Path, other: Path) -> dict[str, Any]:
    """Compares two recordings.

    Args:
        reference: Folder of the plain recipe's.
        other: Folder of the other recipe's.

    Returns:
        `image_psnr_db`, of every prompt's picture; `step_errors`, of the transformer's output at
        every step for the same inputs; `embedding_errors`, of each tensor of the prompts'
        embeddings, the worst prompt's; `rounding`, the same of `plain` and of `fast` against text
        encoders in float32; `scene_code_error` for the same cut-out;
        `view_psnr_db` of the clouds made of the scene codes, in every view; `gaussians`, of both.
        Errors are norms of differences over norms.
    """
    plain, fast = _read(reference), _read(other)
    clouds = [ply.decode((folder / _CLOUD).read_bytes()) for folder in (reference, other)]
    # Not gsplat: on a new machine, compiling it would take longer than everything here.
    views = [render_views(cloud, VIEWS, SIZE, backend="cpu") for cloud in clouds]

    def of_embeddings(found: list[Tensor], expected: list[Tensor]) -> list[float]:
        return [
            max(relative_error(a, b) for a, b in zip(parts, exact, strict=True))
            for parts, exact in zip(found, expected, strict=True)
        ]

    return {
        "image_psnr_db": [
            psnr(a.numpy(), b.numpy())
            for a, b in zip(fast["pictures"], plain["pictures"], strict=True)
        ],
        "step_errors": [
            relative_error(a, b) for a, b in zip(fast["outputs"], plain["outputs"], strict=True)
        ],
        "embedding_errors": of_embeddings(fast["embeddings"], plain["embeddings"]),
        "rounding": {
            name: of_embeddings(found["embeddings"], plain["exact_embeddings"])
            for name, found in (("plain", plain), ("fast", fast))
        },
        "scene_code_error": relative_error(fast["scene_code"], plain["scene_code"]),
        "view_psnr_db": [psnr(a, b) for a, b in zip(*views, strict=True)],
        "gaussians": [len(cloud) for cloud in clouds],
    }


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    difference = torch.linalg.vector_norm(found.float() - expected.float())
    return float(difference / torch.linalg.vector_norm(expected.float()))


def psnr(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of two pictures, at most `LARGEST_PSNR`."""
    error = np.square(found.astype(np.float64) - expected).mean()
    with np.errstate(divide="ignore"):
        return float(np.minimum(10 * np.log10(255.0**2 / error), LARGEST_PSNR))


def _on_host(embeddings: Sequence[Embedding]) -> list[Tensor]:
    """The prompts' tensors, each stacked."""
    return [torch.cat(parts).cpu() for parts in zip(*embeddings, strict=True)]


def _exact_embeddings(draw: TextToImage) -> list[Embedding]:
    """Encodes the prompts in float32, in which the text encoders, which must be eager, remain."""
    draw.drop_caches()
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(draw.pipeline, name, None)
        if encoder is not None:
            encoder.float()
    return [draw.embed(prompt) for prompt in PROMPTS]


def _inputs_of_a_picture(draw: TextToImage) -> list[Inputs]:
    """Returns the inputs of the transformer, which must be eager, in the first picture's steps."""
    steps: list[Inputs] = []

    def keep(_module: object, _arguments: object, named: dict[str, Any]) -> None:
        steps.append({k: v.clone() for k, v in named.items() if isinstance(v, Tensor)})

    hook = draw.pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        draw(PROMPTS[0], 0)
    finally:
        hook.remove()
    return steps


def _cutout() -> Image.Image:
    """An object with shades, RGBA, framed as the background stage frames it."""
    shades = Image.radial_gradient("L").resize((512, 512))
    alpha = Image.new("L", (512, 512))
    ImageDraw.Draw(alpha).rounded_rectangle((64, 96, 448, 416), radius=80, fill=255)
    return Image.merge("RGBA", (shades, shades.transpose(Image.Transpose.ROTATE_90), shades, alpha))


def _read(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / _TENSORS, map_location="cpu", weights_only=True)
    return content
