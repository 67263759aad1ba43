"""Makes the candidates of every prompt and says how right each is; what is made is kept."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from generation.errors import GenerationError
from generation.pictures.framing import composite_on_grey
from generation.presets import preset
from generation.rendering import render_views
from generation.scoring import embedded
from generation.scoring.validity import check
from generation.stage import Asset, Cutout
from generation.weights.store import EMBEDDED
from protocol import spz
from protocol.files import replace_file
from protocol.tasks import TextTask
from scripts.train_embedded import metrics
from scripts.train_embedded.evaluate import Networks
from scripts.train_embedded.palette import nearest
from scripts.train_embedded.prompts import Prompt
from scripts.train_embedded.train_scorer import RIGHT_IOU

CANDIDATES = 4
VIEW = 1
"""The view of the contact sheet."""
CELL = 96

T = TypeVar("T")


@dataclass(frozen=True)
class Candidate:
    """One picture of a prompt and the object that it became.

    Attributes:
        seed: Of the noise.
        rating: Of the cut-out, before it was lifted.
        score: Of the object, 0 if none could be made.
        colour_right: Whether the mean colour of the splat is nearest to the named one.
        shape_right: Whether no other object fits better, and this one at `RIGHT_IOU` or more.
        iou: Intersection over union with the object asked for, at the best yaw.
        picture_s: Seconds from the prompt to the cut-out.
        rate_s: Seconds of the rating.
        object_s: Seconds from the cut-out to the SPZ file.
        score_s: Seconds of the score.
    """

    seed: int
    rating: float
    score: float
    colour_right: bool
    shape_right: bool
    iou: float
    picture_s: float
    rate_s: float
    object_s: float
    score_s: float

    @property
    def right(self) -> bool:
        """Whether colour and shape are."""
        return self.colour_right and self.shape_right


class Maker:
    """Makes candidates with the shipped networks on the CPU.

    Args:
        folder: Where finished prompts are cached, in one subfolder per version of the networks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _fingerprint(EMBEDDED)

    def make(self, index: int, prompt: Prompt) -> list[Candidate]:
        """Makes the candidates of a prompt, unless an earlier run did.

        Args:
            index: Number of the prompt; it decides the seeds.
            prompt: The prompt.
        """
        file = self.folder / f"{index:04}.json"
        if file.is_file():
            content = json.loads(file.read_bytes())
            if content["prompt"] == prompt.text:
                return [Candidate(**candidate) for candidate in content["candidates"]]
        made = [self._candidate(prompt, 1000 * n + index) for n in range(CANDIDATES)]
        self.folder.mkdir(parents=True, exist_ok=True)
        strip = Image.new("RGB", (CANDIDATES * CELL, CELL), "white")
        for column, (_, picture) in enumerate(made):
            strip.paste(picture, (column * CELL, 0))
        strip.save(self.strip(index))
        candidates = [candidate for candidate, _ in made]
        content = {"prompt": prompt.text, "candidates": [asdict(c) for c in candidates]}
        replace_file(file, json.dumps(content).encode())
        return candidates

    def strip(self, index: int) -> Path:
        """The picture of a prompt's candidates side by side."""
        return self.folder / f"{index:04}.png"

    @cached_property
    def _networks(self) -> Networks:
        return Networks(EMBEDDED)

    @cached_property
    def _scorer(self) -> embedded.EmbeddedScorer:
        return embedded.load(preset("embedded"), None, torch.device("cpu"))

    def _candidate(self, prompt: Prompt, seed: int) -> tuple[Candidate, Image.Image]:
        task = TextTask(id="quality", prompt=prompt.text)
        networks, scorer = self._networks, self._scorer
        blank = Image.new("RGB", (CELL, CELL), "white")
        picture_s = rate_s = object_s = rating = 0.0
        try:
            (image, framed), picture_s = _timed(lambda: _cut_out(networks, prompt.text, seed))
            on_grey = np.asarray(composite_on_grey(framed))
            cutout = Cutout(np.asarray(image), np.asarray(framed), on_grey)
            rating, rate_s = _timed(lambda: scorer.rate(cutout, task))
            asset, object_s = _timed(lambda: _lift(networks, framed))
        except GenerationError:
            nothing = (0.0, False, False, 0.0)
            return Candidate(seed, rating, *nothing, picture_s, rate_s, object_s, 0.0), blank
        score, score_s = _timed(lambda: scorer.score(asset, task))
        ious = metrics.best_yaw_ious(asset.cloud)
        iou = float(ious[prompt.shape])
        candidate = Candidate(
            seed=seed,
            rating=rating,
            score=score.value,
            colour_right=int(nearest(metrics.mean_colour(asset.cloud))) == prompt.colour,
            shape_right=int(ious.argmax()) == prompt.shape and iou >= RIGHT_IOU,
            iou=iou,
            picture_s=picture_s,
            rate_s=rate_s,
            object_s=object_s,
            score_s=score_s,
        )
        view = render_views(asset.cloud, (VIEW,), 2 * CELL, backend="cpu")[0]
        return candidate, Image.fromarray(view).resize((CELL, CELL), Image.Resampling.BOX)


def _cut_out(networks: Networks, prompt: str, seed: int) -> tuple[Image.Image, Image.Image]:
    image = networks.draw(prompt, seed)
    return image, networks.cut(image)


def _lift(networks: Networks, framed: Image.Image) -> Asset:
    cloud = networks.lift(framed)
    return Asset(cloud, spz.encode(cloud), check(cloud))


def _timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
