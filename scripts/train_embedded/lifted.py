"""What the scorer learns from: clouds that the other networks made, and how right they are."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing
from tqdm import tqdm

from generation.errors import GenerationError
from generation.pictures.framing import resize_foreground
from generation.scoring.embedded import look_at_cloud, look_at_cutout
from protocol import spz
from scripts.train_embedded import metrics
from scripts.train_embedded.evaluate import Networks, picture_of
from scripts.train_embedded.files import write_atomically
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import nearest
from scripts.train_embedded.prompts import held_out_pairs, training_pairs, write_prompt
from scripts.train_embedded.shading import (
    Light,
    draw_backgrounds,
    halve,
    jitter_colours,
    over,
    paint_pixels,
    part_colours,
)
from scripts.train_embedded.world import draw_solids, paint_table, trace

SHARD = 16
"""Clouds in a file; what an interrupted run loses at most, for each process."""

FEW_GAUSSIANS = 10_000
"""What the preset's lowest rung makes."""


@dataclass(frozen=True)
class Order:
    """One cloud to make.

    Attributes:
        colour, shape: What is asked for, a training pair.
        prompt: In words; empty for an exact picture instead of FLUX's.
        seed: Of the noise, or of the exact picture.
        steps: Denoising steps; few of them give poor pictures.
        gaussians: Most Gaussians.
        hole: Left, top, width and height of what is missing from the cut-out, in shares of its
            side; None if nothing is.
    """

    colour: int
    shape: int
    prompt: str
    seed: int
    steps: int = 8
    gaussians: int = 20_000
    hole: tuple[float, float, float, float] | None = None


def write_order(number: int) -> Order:
    """The cloud of that number.

    Of ten, five are what the pipeline makes of a prompt. The others are there to be worse, or to
    be other than asked for: one from few denoising steps, one from a prompt with two colours and
    two objects, one from a cut-out with a hole, two from exact pictures. One in six of all has the
    lowest rung's Gaussians. No pair of any of them is held out.
    """
    rng = random.Random(f"order {number}")
    pairs = training_pairs()
    colour, shape = pairs[rng.randrange(len(pairs))]
    prompt = write_prompt(colour, shape, rng).text
    order = Order(colour, shape, prompt, seed=rng.randrange(2**31))
    if rng.random() < 1 / 6:
        order = replace(order, gaussians=FEW_GAUSSIANS)
    match number % 10:
        case 5:
            return replace(order, steps=rng.randint(2, 4))
        case 6:
            other = rng.choice(
                [
                    (c, s)
                    for c, s in pairs
                    if not {(c, shape), (colour, s)} & held_out_pairs() and s != shape
                ]
            )
            both = f"{prompt} {write_prompt(*other, rng).text}"
            return replace(order, prompt=both)
        case 7:
            width, height = rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)
            left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            return replace(order, hole=(left, top, width, height))
        case 8 | 9:
            return replace(order, prompt="")
    return order


@dataclass(frozen=True)
class Lifted:
    """N clouds as the scorer sees them.

    Attributes:
        views: (N, 4, 4, 64, 64) uint8, see `look_at_cloud`, times 255.
        cutouts: (N, 1, 4, 64, 64) uint8, see `look_at_cutout`, times 255.
        wanted: (N, 2) int64 colour and object asked for.
        colours: (N, 3) float32 mean RGB of what the cloud covers in the views.
        ious: (N, 16) float32 intersection over union with every object at its best yaw.
        numbers: (N,) int64 which orders they come from.
    """

    views: Tensor
    cutouts: Tensor
    wanted: Tensor
    colours: Tensor
    ious: Tensor
    numbers: Tensor

    @classmethod
    def join(cls, parts: Sequence["Lifted"]) -> "Lifted":
        """All of them, in this order."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})

    def select(self, index: Tensor) -> "Lifted":
        """The clouds at an index."""
        return Lifted(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: str) -> "Lifted":
        """All of them on a device."""
        return Lifted(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def found(self) -> tuple[Tensor, Tensor]:
        """(N,) nearest named colours and (N,) objects that fit best."""
        return nearest(self.colours), self.ious.argmax(1)

    def __len__(self) -> int:
        return len(self.wanted)


def lift_all(models: Path, folder: Path, count: int, jobs: int) -> Lifted:
    """Makes the first `count` clouds, unless an earlier run did, `jobs` at a time on the CPU.

    Args:
        models: The other networks' folder.
        folder: Where finished clouds are kept.
        count: A multiple of `SHARD`.
        jobs: Processes, one thread each.

    Returns:
        The clouds that could be made and that do not look like a held-out pair.
    """
    files = [folder / f"{start:06}.safetensors" for start in range(0, count, SHARD)]
    missing = [(models, file) for file in files if not file.is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            made = pool.imap_unordered(_lift_shard, missing)
            for _ in tqdm(made, desc="clouds", total=len(missing), unit=f"{SHARD} clouds"):
                pass
    return without_held_out(Lifted.join([Lifted(**load_file(file)) for file in files]))


def without_held_out(lifted: Lifted) -> Lifted:
    """Leaves out clouds that came out as a pair that no network may learn from."""
    pairs = zip(*(found.tolist() for found in lifted.found()), strict=True)
    held_out = held_out_pairs()
    keep = [index for index, pair in enumerate(pairs) if pair not in held_out]
    return lifted.select(torch.tensor(keep))


_networks: dict[Path, Networks] = {}


def _lift_shard(task: tuple[Path, Path]) -> None:
    models, file = task
    if models not in _networks:
        _networks[models] = Networks(models)
    # Numba, which rembg has loaded by now, sets it to the number of cores.
    torch.set_num_threads(1)
    start = int(file.stem)
    made = [lift(_networks[models], number) for number in range(start, start + SHARD)]
    shard = Lifted.join([one for one in made if one is not None])
    content = {f.name: getattr(shard, f.name) for f in fields(shard)}
    write_atomically(file, lambda draft: save_file(content, draft))


def lift(networks: Networks, number: int) -> Lifted | None:
    """Makes one cloud and measures it; None if its picture shows no object."""
    order = write_order(number)
    try:
        cutout = _cut_out(networks, order)
        cloud = networks.lift(cutout, order.gaussians)
    except GenerationError:
        return None
    # As it travels: rounded by the codec.
    views = look_at_cloud(spz.decode(spz.encode(cloud)))
    colour = views[:, :3].sum((0, 2, 3)) / views[:, 3].sum().clamp_min(1e-6)
    return Lifted(
        views=(views * 255).round().byte()[None],
        cutouts=(look_at_cutout(np.asarray(cutout)) * 255).round().byte()[None],
        wanted=torch.tensor([[order.colour, order.shape]]),
        colours=colour[None],
        ious=metrics.best_yaw_ious(cloud)[None],
        numbers=torch.tensor([number]),
    )


def _cut_out(networks: Networks, order: Order) -> Image.Image:
    if order.prompt:
        cutout = networks.cut(networks.draw(order.prompt, order.seed, steps=order.steps))
    else:
        size = networks.draw.settings.size
        image, _ = exact_picture(order.colour, order.shape, order.seed, size)
        cutout = networks.cut(picture_of(image))
    if order.hole is None:
        return cutout
    left, top, width, height = (round(share * cutout.width) for share in order.hole)
    alpha = cutout.getchannel("A")
    alpha.paste(0, (left, top, left + width, top + height))
    cutout.putalpha(alpha)
    return resize_foreground(cutout)


def exact_picture(colour: int, shape: int, seed: int, size: int) -> tuple[Tensor, Tensor]:
    """Draws one object of the world: picture (3, S, S) and exact cut-out (4, S, S), in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    solid, elevation = draw_solids(SHAPES[shape], 1, generator)
    normals, parts = trace(solid, elevation, 2 * size)
    main = jitter_colours(torch.tensor([colour]), generator)
    colours = part_colours(paint_table(), torch.tensor([shape]), main)
    rgba = halve(paint_pixels(normals, parts, colours, Light.draw(1, generator)))
    alpha = rgba[0, 3:]
    cutout = torch.cat([rgba[0, :3] / alpha.clamp_min(1e-3), alpha])
    return over(rgba, draw_backgrounds(main, generator))[0], cutout
