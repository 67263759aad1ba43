"""The pictures that the small TripoSplat learns from, prepared as the pipeline prepares them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing
from torch.nn import functional
from tqdm import tqdm

from generation.errors import NoObject
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.prepare import prepare
from generation.pictures.framing import resize_foreground
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.evaluate import picture_of
from scripts.train_embedded.export import read_vae
from scripts.train_embedded.files import write_atomically
from scripts.train_embedded.pictures import Batch
from scripts.train_embedded.recipe import Places, Recipe
from scripts.train_embedded.train_triposr import worn_cutouts
from scripts.train_embedded.train_vae import redraw
from scripts.train_embedded.world import paint_table

_AT_ONCE = 32
_SHARD = 256
_MEASURED = 256
"""Pictures whose statistics the VAE has."""


@dataclass(frozen=True)
class Pictures:
    """P pictures; all tensors are on one device.

    Attributes:
        views: (P,) int64, which view of the bank they show.
        colours: (P, parts, 3) float32 RGB of the parts.
        pixels: (P, S, S, 3) uint8 RGB on black.
        tokens: (P, T, C) float16, what the VAE says of them.
    """

    views: Tensor
    colours: Tensor
    pixels: Tensor
    tokens: Tensor

    @classmethod
    def load(cls, file: Path) -> "Pictures":
        """Reads what `save` wrote, to the CPU."""
        return cls(**torch.load(file, map_location="cpu", mmap=True, weights_only=True))

    def to(self, device: torch.device) -> "Pictures":
        """All of them on a device."""
        return Pictures(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def save(self, file: Path) -> None:
        """Writes all tensors."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        write_atomically(file, lambda draft: torch.save(tensors, draft))

    def select(self, index: Tensor) -> "Pictures":
        """The pictures at an index (W,)."""
        return Pictures(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


_FIELDS = fields(Pictures)


def draw_pictures(recipe: Recipe, places: Places, vae: Path, device: str, jobs: int) -> Pictures:
    """Draws pictures of the bank's views, worn and cut out imperfectly, half of them redrawn.

    They are drawn once, since the pipeline's own preparation, on the CPU, makes them. Finished
    shards are not drawn again.

    Args:
        recipe: How many pictures, and how large.
        places: Where bank and shards are.
        vae: Folder of FLUX's autoencoder, which redraws.
        device: Of the bank while they are drawn.
        jobs: Processes on a CPU, one thread each; threads that prepare pictures beside a GPU.

    Returns:
        The pictures on the CPU, without tokens.
    """
    count = recipe.splat_plan.pictures
    shards = [(number, min(_SHARD, count - number)) for number in range(0, count, _SHARD)]
    tasks = [
        (recipe, places, vae, device, jobs, number, size)
        for number, size in shards
        if not _shard(places, number).is_file()
    ]
    bar = tqdm(total=len(tasks), desc="pictures", unit=f"{_SHARD} pictures")
    if device == "cpu" and jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            for _ in pool.imap_unordered(_draw_shard, tasks):
                bar.update()
    else:
        for task in tasks:
            _draw_shard(task)
            bar.update()
    bar.close()
    drawn = [Pictures.load(_shard(places, number)) for number, _ in shards]
    return Pictures(**{f.name: torch.cat([getattr(d, f.name) for d in drawn]) for f in _FIELDS})


def _shard(places: Places, number: int) -> Path:
    return places.state / "pictures" / f"{number:06}.pt"


@torch.no_grad()
def _draw_shard(task: tuple[Recipe, Places, Path, str, int, int, int]) -> None:
    recipe, places, folder, name, jobs, number, count = task
    device = torch.device(name)
    if name == "cpu" and jobs > 1:
        torch.set_num_threads(1)
    bank, vae = _world(places.bank, folder, device)
    generator = torch.Generator(device).manual_seed(recipe.splat_plan.flow.seed + number)
    paints, size = paint_table(device), recipe.splat_plan.encoders.picture_size
    drawn: list[Pictures] = []
    missing = count
    with ThreadPoolExecutor(1 if name == "cpu" else jobs) as threads:
        while missing:
            index = torch.randint(len(bank), (_AT_ONCE,), generator=generator, device=device)
            batch = Batch.of_views(bank.select(index), paints, generator)
            images = batch.images()
            images[::2] = redraw(vae, images[::2], generator)
            rgba = cut_out(batch, images, generator).cpu()
            found = list(threads.map(partial(_prepared, size=size), rgba))
            kept = [row for row, one in enumerate(found) if one is not None][:missing]
            drawn.append(
                Pictures(
                    views=index[kept].cpu(),
                    colours=batch.colours[kept].cpu(),
                    pixels=torch.stack([one for one in found if one is not None][:missing]),
                    tokens=torch.zeros(len(kept), 0),
                )
            )
            missing -= len(kept)
    shard = Pictures(**{f.name: torch.cat([getattr(d, f.name) for d in drawn]) for f in _FIELDS})
    shard.save(_shard(places, number))


@cache
def _world(bank: Path, vae: Path, device: torch.device) -> tuple[Bank, Any]:
    return Bank.load(bank, device).without_points(), read_vae(vae, device)


def cut_out(batch: Batch, images: Tensor, generator: torch.Generator) -> Tensor:
    """Imperfect cut-outs (B, 4, S, S) of images (B, 3, S, S), transparent around a box."""
    rgba, boxes = worn_cutouts(batch, images, generator)
    side = images.shape[-1]
    line = (torch.arange(side, device=images.device) + 0.5) / side
    left, top, right, bottom = (edge[:, None] for edge in boxes.unbind(1))
    columns, rows = (line > left) & (line < right), (line > top) & (line < bottom)
    rgba[:, 3] *= rows[:, :, None] & columns[:, None, :]
    return rgba


def _prepared(rgba: Tensor, size: int) -> Tensor | None:
    try:
        picture = prepare(resize_foreground(picture_of(rgba)), canvas=size)
    except NoObject:
        return None
    return torch.from_numpy(picture)


def pixels_of(pictures: Tensor) -> Tensor:
    """(P, S, S, 3) uint8 to (P, 3, S, S) float32 in 0..1."""
    return pictures.permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def vae_tokens(encoders: PictureEncoders, pictures: Tensor) -> Tensor:
    """What the VAE says of pictures (P, S, S, 3) uint8: (P, T, C), its mean."""
    pixels = pixels_of(pictures)
    side = pixels.shape[-1] // 2 ** (len(encoders.vae.config.block_out_channels) - 1)
    noise = pixels.new_zeros(len(pixels), encoders.vae.config.latent_channels, side, side)
    return encoders.vae_tokens(pixels, noise)


@torch.no_grad()
def measure_statistics(encoders: PictureEncoders, pictures: Tensor) -> None:
    """Sets the VAE's statistics so that tokens of the first pictures have mean 0, deviation 1."""
    norm, prefix = encoders.vae.bn, 1 + encoders.dino.config.num_register_tokens
    norm.running_mean.zero_()
    norm.running_var.fill_(1)
    tokens = vae_tokens(encoders, pictures[:_MEASURED])[:, prefix:].flatten(0, 1)
    norm.running_mean.copy_(tokens.mean(0))
    norm.running_var.copy_(functional.relu(tokens.var(0) - 1e-4) + 1e-4)


def look_at(encoders: PictureEncoders, pictures: Pictures) -> Pictures:
    """The pictures with what the encoders' VAE says of them, after setting its statistics."""
    measure_statistics(encoders, pictures.pixels)
    tokens = [
        vae_tokens(encoders, piece).half() for piece in torch.split(pictures.pixels, _AT_ONCE)
    ]
    return replace(pictures, tokens=torch.cat(tokens))
