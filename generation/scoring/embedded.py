"""The scorer of the preset `embedded`: do the views show the colour and the object of the prompt.

A small network says how likely each of the twelve colours and sixteen objects is, and how well the
cloud's solid agrees with each object. It sees what a validator sees: the cloud as it travels, with
the validator's changes, through four of its cameras.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from generation.errors import NoObject
from generation.pictures.framing import MAX_SIDE, resize_foreground
from generation.pictures.matte import opacity, outlines_object
from generation.pictures.plain_border import plain_border_mask
from generation.rendering import as_seen_by_validator, render_layers, validator_camera
from generation.rendering.cameras import DUEL_VIEWS
from generation.scoring.score import Score
from generation.scoring.validity import check
from generation.settings import GenerationSettings
from generation.stage import Asset, Cutout
from generation.weights.store import EMBEDDED
from generation.words import known_prompt, understand
from protocol import spz
from protocol.errors import CodecError, SetupError
from protocol.gaussians import GaussianCloud
from protocol.images import decode_image
from protocol.tasks import Task, TextTask

NAME = "embedded"
FOLDER = EMBEDDED / "scorer"
CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"

SIDE = 64
"""Pixels per side of what the network sees."""

_CUTOUT_SIDE = 50
"""Pixels of a framed cut-out within them: the object is then as large as in a view of a cloud."""


_PATCH = 4
"""Pixels per side of the patches whose colours are looked at."""


_MOST_PICTURES = 4
"""Pictures of image tasks of which it is remembered what they show, with the files."""


_BACKGROUND = re.compile(r"\w+\s+(?:background|backdrop)\b", re.IGNORECASE)
"""Whatever colour the background has, it is not the object's."""


class ScorerConfig(BaseModel):
    """What belongs to the weights.

    Attributes:
        colours: The colours in the order of the network's outputs, each with its words.
        objects: The objects, likewise.
        exponent: Power that brings colour times object to the validator's scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    colours: dict[str, tuple[str, ...]]
    objects: dict[str, tuple[str, ...]]
    exponent: float = Field(gt=0)


class Judgement(NamedTuple):
    """What the network says of B things.

    Attributes:
        colours: (B, 12) logits of the colours.
        objects: (B, 16) logits of the objects.
        likeness: (B, 16) logits of the intersection over union with each object.
    """

    colours: Tensor
    objects: Tensor
    likeness: Tensor


class ScorerNetwork(nn.Module):
    """Views to a judgement; a colour branch without shape and a shape branch without colour.

    Either would otherwise learn which colours an object comes in, and be wrong about pairs that it
    has never seen. The colour branch sees the colours of small patches, wherever they are, the
    shape branch sees brightness in units of the object's mean.

    Args:
        colours: Number of colours.
        objects: Number of objects.
    """

    def __init__(self, colours: int, objects: int) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.colour = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, colours))
        self.shape = nn.Sequential(
            *_down(2, 16), *_down(16, 32), *_down(32, 48), *_down(48, 48), nn.Flatten()
        )
        self.view = nn.Sequential(nn.Linear(48 * (SIDE // 16) ** 2, 96), nn.ReLU())
        self.object = nn.Sequential(nn.Linear(2 * 96, 96), nn.ReLU(), nn.Linear(96, 2 * objects))

    def forward(self, views: Tensor) -> Judgement:
        """Judges B things in V views each.

        Args:
            views: (B, V, 4, 64, 64) RGB premultiplied by coverage, and coverage, in 0..1.
        """
        count, number = views.shape[:2]
        flat = views.flatten(0, 1)
        patches = functional.avg_pool2d(flat, _PATCH).view(count, number, 4, -1)
        patches = patches.transpose(2, 3).flatten(1, 2)
        coverage = patches[..., 3:]
        area = coverage.sum(1).clamp_min(1e-3)
        # A patch's own colour; the background, without any, has no weight.
        own = patches[..., :3] / coverage.clamp_min(1e-2)
        colours = self.colour((self.patch(own.clamp(0, 1)) * coverage).sum(1) / area)

        brightness = views[:, :, :3].mean(2, keepdim=True)
        mean = patches[..., :3].mean(2).sum(1) / area[:, 0]
        relative = brightness / mean.clamp_min(1e-2)[:, None, None, None, None]
        layers = torch.cat([views[:, :, 3:], relative], dim=2)
        seen = self.view(self.shape(layers.flatten(0, 1))).view(count, number, -1)
        objects = self.object(torch.cat([seen.mean(1), seen.amax(1)], dim=1))
        return Judgement(colours, *objects.chunk(2, dim=1))


def _down(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()


@dataclass(frozen=True)
class Wanted:
    """What a task asks for: numbers of colours and objects; of either, any will do.

    Nothing of a kind means that the kind does not count.
    """

    colours: tuple[int, ...]
    objects: tuple[int, ...]


class EmbeddedScorer:
    """Judges colour and object; a `Scorer`.

    `colour` is the probability that the splat has a wanted colour; `object` the probability that it
    is a wanted object, times the expected intersection over union of its solid with that object. A
    prompt that names only a colour or only an object is judged by that alone; of several colours or
    objects, the best one counts. One that names neither, and a picture that cannot be cut out here,
    ask for any colour and any object. Of other pictures, what they show most probably is asked for.

    Args:
        network: In eval mode, on the device.
        config: What belongs to its weights.
        device: Where it computes.
    """

    def __init__(self, network: ScorerNetwork, config: ScorerConfig, device: torch.device) -> None:
        self._network, self._config, self._device = network, config, device
        self._colours, self._objects = _numbers(config.colours), _numbers(config.objects)
        self._vocabulary = frozenset(self._colours | self._objects)
        self._shown = lru_cache(_MOST_PICTURES)(self._recognise)

    def rate(self, cutout: Cutout, task: Task) -> float:
        """Returns the score that a drawn picture's cloud is expected to get."""
        return self._score(look_at_cutout(cutout.rgba), self.wanted(task)).value

    def score(self, asset: Asset, task: Task) -> Score:
        """Returns the score of a cloud as it travels; 0 if it fails the validator's data checks."""
        try:
            cloud = spz.decode(asset.spz)
            report = check(cloud)
            if not report.passed:
                return Score(0.0, scorer=NAME, problem=report.summary())
            views = look_at_cloud(cloud)
        except (CodecError, ValueError) as error:
            return Score(0.0, scorer=NAME, problem=str(error))
        return self._score(views, self.wanted(task))

    def drop_caches(self) -> None:
        """Forgets what pictures of image tasks show."""
        self._shown.cache_clear()

    @torch.inference_mode()
    def judge(self, views: Tensor) -> Judgement:
        """Returns what the network says of one thing, seen in views (V, 4, 64, 64)."""
        return Judgement(*(part[0].cpu() for part in self._network(views[None].to(self._device))))

    def wanted(self, task: Task) -> Wanted:
        """Returns what a task asks for."""
        wanted = self._named(task.prompt) if isinstance(task, TextTask) else self._shown(task.image)
        if wanted.colours or wanted.objects:
            return wanted
        return Wanted(
            tuple(range(len(self._config.colours))), tuple(range(len(self._config.objects)))
        )

    def _named(self, prompt: str) -> Wanted:
        known = known_prompt(_BACKGROUND.sub(" ", prompt), self._vocabulary)
        words = understand(known, self._vocabulary).understood
        return Wanted(
            tuple(dict.fromkeys(self._colours[word] for word in words if word in self._colours)),
            tuple(dict.fromkeys(self._objects[word] for word in words if word in self._objects)),
        )

    def _recognise(self, image: bytes) -> Wanted:
        cutout = _cut_out_plainly(decode_image(image, side=MAX_SIDE))
        if cutout is None:
            return Wanted((), ())
        judgement = self.judge(look_at_cutout(np.asarray(cutout)))
        return Wanted((int(judgement.colours.argmax()),), (int(judgement.objects.argmax()),))

    def _score(self, views: Tensor, wanted: Wanted) -> Score:
        judgement = self.judge(views)
        parts = {}
        if wanted.colours:
            parts["colour"] = _best(judgement.colours.softmax(0), wanted.colours)
        if wanted.objects:
            likeness = judgement.objects.softmax(0) * judgement.likeness.sigmoid()
            parts["object"] = _best(likeness, wanted.objects)
        return Score(on_scale(parts, self._config.exponent), parts, NAME)


def on_scale(parts: Mapping[str, float], exponent: float) -> float:
    """Returns the score of its parts: 0.6 where right is as probable as wrong."""
    return float(np.prod(list(parts.values())) ** exponent)


def look_at_cloud(cloud: GaussianCloud) -> Tensor:
    """Renders the duel judge's four views of a cloud, after the validator's changes, on the CPU.

    Returns:
        (4, 4, 64, 64) float32 in 0..1: view, then RGB premultiplied by coverage, and coverage.

    Raises:
        ValueError: The cloud cannot be rescaled.
    """
    cameras = [validator_camera(index, SIDE) for index in DUEL_VIEWS]
    rgb, coverage = render_layers(as_seen_by_validator(cloud), cameras, backend="cpu")
    layers = np.concatenate([rgb, coverage[..., None]], axis=-1).clip(0, 1)
    return torch.from_numpy(layers).permute(0, 3, 1, 2).contiguous()


def look_at_cutout(rgba: NDArray[np.uint8]) -> Tensor:
    """Scales a framed cut-out (S, S, 4) to the size of a view: (1, 4, 64, 64), as above."""
    layers = torch.from_numpy(rgba.astype(np.float32) / 255).permute(2, 0, 1)[None]
    layers = torch.cat([layers[:, :3] * layers[:, 3:], layers[:, 3:]], dim=1)
    small = functional.interpolate(
        layers, size=(_CUTOUT_SIDE,) * 2, mode="bilinear", antialias=True, align_corners=False
    )
    margin = (SIDE - _CUTOUT_SIDE) // 2
    return functional.pad(small, (margin,) * 4).clamp(0, 1)


def load(
    settings: GenerationSettings, models_dir: Path | None, device: torch.device
) -> EmbeddedScorer:
    """Loads the shipped scorer, whatever the preset and the models folder are.

    Raises:
        SetupError: A shipped file is missing or damaged.
    """
    return read(FOLDER, device)


def read(folder: Path, device: torch.device) -> EmbeddedScorer:
    """Reads what `write` wrote.

    Raises:
        SetupError: A file is missing or damaged, or the two do not belong together.
    """
    try:
        config = ScorerConfig.model_validate_json((folder / CONFIG_NAME).read_bytes())
        with torch.device("meta"):
            network = ScorerNetwork(len(config.colours), len(config.objects))
        weights = load_file(folder / WEIGHTS_NAME)
        network.load_state_dict({n: w.float() for n, w in weights.items()}, assign=True)
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        raise SetupError(
            f"no scorer could be loaded from {folder}: {error}",
            fix="install the project again: these files come with it",
        ) from error
    return EmbeddedScorer(network.to(device).eval().requires_grad_(False), config, device)


def write(network: ScorerNetwork, config: ScorerConfig, folder: Path) -> None:
    """Writes a scorer into a folder, the weights in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config.model_dump(mode="json"), indent=1)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    weights = {n: w.detach().cpu().half().contiguous() for n, w in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS_NAME)


def _numbers(classes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Word to class."""
    return {
        word: number
        for number, (name, synonyms) in enumerate(classes.items())
        for word in (name, *synonyms)
    }


def _best(values: Tensor, wanted: tuple[int, ...]) -> float:
    return float(values[list(wanted)].max())


def _cut_out_plainly(image: Image.Image) -> Image.Image | None:
    """Cuts out and frames what a plain border or transparency outlines; None where nothing does."""
    if image.mode == "RGBA":
        alpha = np.asarray(image.getchannel("A"))
        if not outlines_object(alpha, opacity(alpha, 0.0)):
            return None
    else:
        mask = plain_border_mask(image)
        if mask is None:
            return None
        image = image.copy()
        image.putalpha(mask)
    try:
        return resize_foreground(image)
    except NoObject:
        return None
