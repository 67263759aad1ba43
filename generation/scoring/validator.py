"""The score of a cloud as a validator computes it, from the bytes that travel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from generation.acceleration.compiling import Compiled
from generation.acceleration.graphs import Captured, GraphPool
from generation.acceleration.streams import to_host
from generation.quiet import torchvision_problem
from generation.rendering import gsplat_backend
from generation.rendering.cameras import VALIDATOR_SIZE
from generation.rendering.device import dequantise, validator_views
from generation.scoring.data_checks import problem_of
from generation.scoring.formula import (
    ALIGNMENT_SHARE,
    MIN_ALIGNMENT,
    QUALITY_SHARE,
    final_score,
)
from generation.scoring.image_alignment import Llm2Clip, image_alignment, prompt_picture
from generation.scoring.judge import Eye, Judge, ValidatorNetworks
from generation.scoring.quality import QualityConfig, QualityNetwork
from generation.scoring.score import Score
from generation.scoring.similarity import Lpips, Ssim, pair_mean
from generation.scoring.statistics import mean
from generation.scoring.text_alignment import (
    CLIP_NAME,
    DIVISOR,
    ClipNetwork,
    published_config,
    text_alignment,
)
from generation.settings import GenerationSettings
from generation.stage import Asset, Cutout
from generation.weights.sources import ModelSource, ReleaseModel
from generation.weights.store import ModelStore, default_models_dir, fetch_command
from protocol import spz
from protocol.errors import CodecError, SetupError
from protocol.tasks import ImageTask, Task

_PACKAGES = ("open_clip", "timm", "torchmetrics", "torchvision")
_MOST_PROMPTS = 32
"""Prompts whose features are kept; they take 1.5 KB each."""
_MOST_PICTURES = 4
"""Pictures of image tasks whose features are kept, with the files."""


@dataclass(frozen=True)
class Shapes:
    """What the files of the networks hold; the defaults are what validators run.

    Attributes:
        quality: The quality network.
        clip: Arguments of open_clip's `CLIP`; those of convnext_large_d when None.
        view_size: Side of the rendered views, in pixels.
    """

    quality: QualityConfig = field(default_factory=QualityConfig)
    clip: Mapping[str, Any] | None = None
    view_size: int = VALIDATOR_SIZE


def load(
    settings: GenerationSettings,
    models_dir: Path | None,
    device: torch.device,
    *,
    shapes: Shapes | None = None,
) -> "ValidatorScorer":
    """Loads the validator's networks.

    Args:
        settings: The preset; `scoring` names the weights. On a CPU everything is float32.
        models_dir: The models folder; the default one when None.
        device: Where the networks go and the views are rendered.
        shapes: Of other networks than the published ones.

    Raises:
        SetupError: A package of the extra `score` or the renderer is missing, or a file is missing
            or wrong.
    """
    require_extra(device.type)
    if device.type == "cuda" and gsplat_backend.start_trial().done():
        _require_gsplat()
    shapes = shapes or Shapes()
    scoring = settings.scoring
    dtype = torch.float32 if device.type == "cpu" else getattr(torch, scoring.dtype)
    store = ModelStore(models_dir or default_models_dir())

    def folder(model: ModelSource | None, what: str) -> Path:
        if model is None:
            raise SetupError(
                f"preset {settings.name} names no weights for {what}, which the validator's scorer "
                "needs",
                fix="--scoring.scorer none, or give scoring a source for each of its models",
            )
        store.verify(model, fix=fetch_command(settings, models_dir))
        path = store.folder(model)
        return path / model.file if isinstance(model, ReleaseModel) else path

    quality = folder(scoring.quality_model, "the image quality") / "quality_scorer.safetensors"
    clip = folder(scoring.text_model, "the text alignment") / "open_clip_model.safetensors"
    networks = ValidatorNetworks(
        quality=QualityNetwork.load(quality, shapes.quality).to(device),
        clip=ClipNetwork.load(clip, shapes.clip or published_config(), device, dtype),
        lpips=Lpips.load(folder(scoring.lpips_model, "LPIPS")).to(device),
        llm2clip=(
            Llm2Clip.load(folder(scoring.image_model, "the image alignment"), device, dtype)
            if scoring.image_alignment == "llm2clip"
            else None
        ),
    )
    return ValidatorScorer(
        networks,
        device,
        dtype,
        view_size=shapes.view_size,
        accelerate=settings.accelerate and device.type == "cuda",
    )


def _require_gsplat() -> None:
    if not gsplat_backend.is_usable():
        raise SetupError(
            "the validator's scorer renders with gsplat, which cannot be used here; on the CPU the "
            "views of one cloud would take minutes",
            fix="make install EXTRAS=gpu,score, and have nvcc of torch's CUDA version on the PATH, "
            "because gsplat compiles itself once; or --scoring.scorer none",
        )


def require_extra(device_type: str) -> None:
    """Checks that the packages of the extra `score` are there and can be imported.

    Args:
        device_type: Where the views are rendered: with the extra `gpu` on "cuda", without one on
            "cpu".

    Raises:
        SetupError: Names what is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise SetupError(
            f"the validator's scorer needs packages that are not installed: {', '.join(missing)}",
            fix=f"make install EXTRAS={'score' if device_type == 'cpu' else 'gpu,score'}, "
            "or --scoring.scorer none",
        )
    problem = torchvision_problem()
    if problem is not None:
        raise SetupError(
            f"the validator's scorer needs torchvision: {problem}",
            fix="install torchvision from the same index as torch, or --scoring.scorer none",
        )


class ValidatorScorer:
    """Scores clouds and rates pictures with the validator's networks; a `Scorer`.

    The views, what the networks see of them and all that they compute stay on the device; one
    vector of numbers comes back. With float16, the quality network and CLIP multiply in float16 and
    add in float32, as autocast does; SSIM and LPIPS stay float32. Only one thread at a time may
    call `rate` and `score`; `drop_caches` may be called from any.

    Args:
        networks: On the device; changed in place.
        device: Where the views are rendered.
        dtype: What the large networks multiply in.
        view_size: Side of the views, in pixels; the validator's is 518.
        accelerate: Compile the networks and record CUDA graphs, both in the first call of a kind.
        backend: What `torch.compile` compiles with.
    """

    def __init__(
        self,
        networks: ValidatorNetworks,
        device: torch.device,
        dtype: torch.dtype,
        *,
        view_size: int = VALIDATOR_SIZE,
        accelerate: bool = False,
        backend: str = "inductor",
    ) -> None:
        self.networks = networks
        self._device, self._view_size = device, view_size
        networks.quality.hold_products_in(dtype)
        ssim = Ssim().to(device)
        pool = GraphPool()
        modules = (*networks.quality.backbone.encoder.layer, *networks.clip.blocks, ssim)

        def judge_by(eye: Eye, name: str) -> Any:
            judge = Judge(networks, eye, ssim, dtype)
            if not accelerate:
                return judge
            return Captured(name, Compiled(name, judge, modules, backend=backend), pool=pool)

        self._judge_text = self._judge_image = judge_by(networks.clip, "the validator's scorer")
        self._image_eye: Eye = networks.llm2clip or networks.clip
        self._stand_in = f", image alignment by open_clip {CLIP_NAME}"
        if networks.llm2clip is not None:
            self._judge_image = judge_by(networks.llm2clip, "the validator's scorer of images")
            self._stand_in = ""
        self._encode_text: Any = networks.clip.text_features
        if accelerate:
            self._encode_text = Captured("the text encoder", self._encode_text, pool=pool)
        self._of_prompt = lru_cache(_MOST_PROMPTS)(self._encode_prompt)
        self._of_picture = lru_cache(_MOST_PICTURES)(self._encode_picture)

    def score(self, asset: Asset, task: Task) -> Score:
        """Scores the SPZ file of an asset as a validator does.

        Args:
            asset: Only its file is read.
            task: What it was made of.

        Returns:
            `parts` are iqa, alignment, ssim and lpips, as far as they are numbers.
        """
        name = self._name(task)
        try:
            packed = spz.unpack(asset.spz)
        except CodecError as error:
            return Score(0.0, scorer=name, problem=str(error))
        problem = problem_of(packed)
        if problem:
            return Score(0.0, scorer=name, problem=problem)
        views = self.views(packed)
        numbers = to_host(self.measure(views, task)).reshape(4, -1)
        return _verdict(numbers, name, is_image=isinstance(task, ImageTask))

    @torch.no_grad()
    def views(self, packed: spz.PackedCloud) -> Tensor:
        """Renders the validator's 16 views of an unpacked file, (16, H, W, 3) uint8.

        Raises:
            SetupError: gsplat, which may have compiled itself until now, cannot be used.
        """
        if self._device.type == "cuda":
            _require_gsplat()
        return validator_views(dequantise(packed, self._device), self._view_size)

    @torch.no_grad()
    def measure(self, views: Tensor, task: Task) -> Tensor:
        """Compares pictures with a task and with each other.

        Args:
            views: (V, H, W, 3) uint8, on the device.
            task: What they should show.

        Returns:
            float32 on the device; see `Judge`.
        """
        numbers: Tensor
        if isinstance(task, ImageTask):
            numbers = self._judge_image(views, self._of_picture(task.image))
        else:
            numbers = self._judge_text(views, self._of_prompt(task.prompt))
        return numbers

    def rate(self, cutout: Cutout, task: Task) -> float:
        """Rates a drawn picture by quality and alignment, as if it were a view of an object.

        Args:
            cutout: Its framed object is laid on the validator's white.
            task: What it should show.

        Returns:
            0.75 x quality + 0.2 x alignment, without the validator's lower limit.
        """
        iqa, cosine = to_host(self.measure(self._on_white(cutout.rgba), task)).tolist()
        alignment = cosine if isinstance(task, ImageTask) else max(cosine, 0.0) / DIVISOR
        return float(QUALITY_SHARE * iqa + ALIGNMENT_SHARE * alignment)

    def drop_caches(self) -> None:
        """Forgets the features of prompts and pictures. Callable from any thread."""
        self._of_prompt.cache_clear()
        self._of_picture.cache_clear()

    def _name(self, task: Task) -> str:
        return "validator" + (self._stand_in if isinstance(task, ImageTask) else "")

    def _encode_prompt(self, prompt: str) -> Tensor:
        features: Tensor = self._encode_text(self.networks.clip.tokens(prompt))
        return features

    def _encode_picture(self, image: bytes) -> Tensor:
        picture = torch.from_numpy(prompt_picture(image)).to(self._device)
        features: Tensor = self._judge_image(self._image_eye.prepare(picture[None]))
        return features

    def _on_white(self, rgba: NDArray[np.uint8]) -> Tensor:
        """Maps a cut-out (S, S, 4) to a picture of a view's size, (1, H, W, 3) uint8."""
        layers = torch.from_numpy(rgba.copy()).to(self._device).permute(2, 0, 1)[None].float()
        colour, alpha = layers[:, :3], layers[:, 3:] / 255
        on_white = colour * alpha + 255 * (1 - alpha)
        size = (self._view_size, self._view_size)
        resized = F.interpolate(on_white, size, mode="bilinear", antialias=True)
        return resized.clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _verdict(numbers: NDArray[np.float32], name: str, *, is_image: bool) -> Score:
    """Draws the score from the numbers of all views.

    Args:
        numbers: (4, V): qualities, cosines, likenesses and distances.
        name: What the scorer is called.
        is_image: Whether the cosines are those of an image task.
    """
    qualities, cosines, likenesses, distances = numbers
    parts = {
        "iqa": mean(qualities.astype(np.float64)),
        "alignment": (image_alignment if is_image else text_alignment)(cosines),
        "ssim": pair_mean(likenesses),
        "lpips": 1.0 - pair_mean(distances),
    }
    value = final_score(**parts)
    known = {part: number for part, number in parts.items() if math.isfinite(number)}
    problem = ""
    if parts["alignment"] < MIN_ALIGNMENT:
        problem = f"the alignment is {parts['alignment']:.3f}, below {MIN_ALIGNMENT}"
    elif not math.isfinite(value):
        problem = f"not a number: {', '.join(part for part in parts if part not in known)}"
    return Score(value if math.isfinite(value) else 0.0, known, name, problem)
