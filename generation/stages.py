"""The networks of a preset, each behind one plain function."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from generation.acceleration.compiling import Compiled, keep_compiled_code
from generation.acceleration.graphs import Captured
from generation.lift.triposr import SceneCode, TripoSR
from generation.lift.triposr.splats import extract_cloud
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.flux1 import Flux1
from generation.settings import GenerationSettings
from generation.weights.store import cache_dir, locate_models
from protocol import spz
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud


@dataclass(frozen=True)
class Stages:
    """What turns a prompt into an asset, step by step; every function blocks.

    Attributes:
        text_to_image: Prompt and seed (None for the preset's) to an RGB image.
        background: RGB or RGBA image to a framed RGBA cut-out.
        scene_code: The cut-out on grey, RGB, to a scene code.
        splats: Scene code to a Gaussian cloud.
        encode: Gaussian cloud to the bytes of an SPZ file.
        drop_caches: Gives back the embeddings of prompts and what torch keeps in reserve.
    """

    text_to_image: Callable[[str, int | None], Image.Image]
    background: Callable[[Image.Image], Image.Image]
    scene_code: Callable[[Image.Image], SceneCode]
    splats: Callable[[SceneCode], GaussianCloud]
    encode: Callable[[GaussianCloud], bytes]
    drop_caches: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Networks:
    """What a preset keeps resident."""

    text_to_image: Flux1
    background: BackgroundRemover
    triposr: TripoSR


def require_device(settings: GenerationSettings) -> torch.device:
    """Returns the device of a preset.

    Raises:
        SetupError: torch knows no such device, or this machine has none.
    """
    try:
        device = torch.device(settings.device)
    except RuntimeError as error:
        raise SetupError(
            f"{settings.device!r} is no device of torch's: {error}", fix="name cpu or cuda"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SetupError(
            f"preset {settings.name} runs on {settings.device}, but torch {torch.__version__} "
            "finds no CUDA device",
            fix="check nvidia-smi and that torch is a CUDA build, or use --preset embedded",
        )
    return device


def load_networks(
    settings: GenerationSettings, models_dir: Path | None, report: Callable[[str], None]
) -> Networks:
    """Loads every network of a preset.

    Args:
        settings: The preset.
        models_dir: The models folder; the default one when None.
        report: Told what is about to be loaded, four times.

    Raises:
        SetupError: The device is not there, a file is missing or wrong, or memory runs out.
    """
    device = require_device(settings)
    try:
        return _load(settings, device, models_dir, report)
    except torch.OutOfMemoryError as error:
        raise SetupError(
            f"preset {settings.name} does not fit on {settings.device}: {error}",
            fix="free the device (nvidia-smi shows who uses it) or use --preset gpu24",
        ) from error


def _load(
    settings: GenerationSettings,
    device: torch.device,
    models_dir: Path | None,
    report: Callable[[str], None],
) -> Networks:
    report("models folder")
    paths = locate_models(settings, models_dir)
    if settings.accelerate:
        keep_compiled_code(cache_dir() / "compiled")
    report("text to image")
    draw = Flux1.from_pretrained(
        paths.text_to_image,
        settings.text_to_image,
        settings.device,
        accelerate=settings.accelerate,
    )
    report("background")
    cut_out = BackgroundRemover(paths.cutout, settings.cutout, device)
    report("TripoSR")
    triposr = TripoSR.from_pretrained(
        paths.triposr,
        device=device,
        dtype=getattr(torch, settings.triposr.dtype),
        query_chunk=settings.triposr.chunk_size,
    )
    return Networks(draw, cut_out, triposr)


def assemble(
    settings: GenerationSettings, networks: Networks, *, backend: str = "inductor"
) -> Stages:
    """Puts a preset's stages together from its networks.

    Args:
        settings: The preset.
        networks: All on its device.
        backend: What `torch.compile` compiles TripoSR with, if the preset asks for it.
    """
    draw, triposr = networks.text_to_image, networks.triposr
    if settings.accelerate:
        compiled = Compiled("TripoSR", triposr.forward, triposr.layers, backend=backend)
        triposr.forward = Captured("TripoSR", compiled)  # type: ignore[method-assign]

    def scene_code(picture: Image.Image) -> SceneCode:
        code = triposr.scene_codes(picture)
        if code.is_cuda:
            # So that this stage's time and errors are its own.
            torch.cuda.current_stream(code.device).synchronize()
        return code

    def drop_caches() -> None:
        draw.drop_caches()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    return Stages(
        text_to_image=draw,
        background=networks.background,
        scene_code=scene_code,
        splats=lambda code: extract_cloud(triposr, code, settings.splats),
        encode=lambda cloud: spz.encode(cloud, level=settings.spz_level),
        drop_caches=drop_caches,
    )
