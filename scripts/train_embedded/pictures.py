"""Batches of pictures from the bank, and the wear that real pictures show."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from scripts.train_embedded.bank import Bank
from scripts.train_embedded.prompts import training_pairs
from scripts.train_embedded.shading import (
    Light,
    draw_backgrounds,
    halve,
    jitter_colours,
    over,
    paint_pixels,
    part_colours,
)

GREY = 127 / 255
"""The background that TripoSR sees."""


@dataclass(frozen=True)
class Batch:
    """Pictures of V views.

    Attributes:
        bank: The views.
        names: (V,) colour numbers.
        colours: (V, parts, 3) RGB of every part.
        rgba: (V, 4, S, S) premultiplied, at the bank's size.
        backgrounds: (V, 3) plain colours to lay them over.
    """

    bank: Bank
    names: Tensor
    colours: Tensor
    rgba: Tensor
    backgrounds: Tensor

    @classmethod
    def paint(
        cls, bank: Bank, names: Tensor, paints: Tensor, generator: torch.Generator
    ) -> "Batch":
        """Colours and lights views (already selected) as named."""
        main = jitter_colours(names, generator)
        colours = part_colours(paints, bank.objects.long(), main)
        light = Light.draw(len(bank), generator)
        rgba = paint_pixels(bank.normals, bank.parts, colours, light)
        return cls(bank, names, colours, rgba, draw_backgrounds(main, generator))

    @classmethod
    def draw(cls, bank: Bank, count: int, paints: Tensor, generator: torch.Generator) -> "Batch":
        """Draws views, and for each a colour that training may see it in."""
        index = torch.randint(len(bank), (count,), generator=generator, device=generator.device)
        return cls.of_views(bank.select(index), paints, generator)

    @classmethod
    def of_views(cls, views: Bank, paints: Tensor, generator: torch.Generator) -> "Batch":
        """Draws for each view (already selected) a colour that training may see it in."""
        names = draw_colours(views.objects, generator)
        return cls.paint(views, names, paints, generator)

    def images(self) -> Tensor:
        """(V, 3, S/2, S/2) RGB in 0..1 on the plain backgrounds, with smooth edges."""
        return over(halve(self.rgba), self.backgrounds)


def draw_colours(objects: Tensor, generator: torch.Generator) -> Tensor:
    """(V,) colour numbers that are not held out for objects (V,)."""
    allowed = allowed_colours(generator.device)[objects.long()]
    pick = torch.randint(
        allowed.shape[1], (len(objects), 1), generator=generator, device=generator.device
    )
    return allowed.gather(1, pick)[:, 0]


@cache
def allowed_colours(device: torch.device) -> Tensor:
    """(objects, 10) int64: the colours that are not held out for each object."""
    table: dict[int, list[int]] = {}
    for colour, shape in training_pairs():
        table.setdefault(shape, []).append(colour)
    return torch.tensor([table[shape] for shape in sorted(table)], device=device)


def wear(
    images: Tensor, generator: torch.Generator, blur: float = 1.2, noise: float = 0.03
) -> Tensor:
    """Blurs each of (V, C, H, W) by its own share of up to `blur` pixels and adds noise."""
    count, channels = images.shape[:2]
    device = images.device
    sigma = 0.05 + blur * torch.rand(count, 1, generator=generator, device=device)
    offset = torch.arange(-3, 4, device=device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, *images.shape[2:])
    padded = functional.pad(flat, (3, 3, 3, 3), mode="replicate")
    flat = functional.conv2d(padded, kernel[:, None, :, None], groups=count * channels)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=count * channels)
    strength = noise * torch.rand(count, 1, 1, 1, generator=generator, device=device)
    grain = torch.randn(images.shape, generator=generator, device=device)
    return flat.view_as(images) + strength * grain


def frame_for_triposr(rgba: Tensor, boxes: Tensor, size: int, ratio: float) -> Tensor:
    """Crops to boxes as `resize_foreground` does and lays over grey.

    Args:
        rgba: (V, 4, S, S), colours not multiplied by alpha.
        boxes: (V, 4) left, top, right, bottom in shares of the side.
        size: Pixels per side of the result.
        ratio: Longer side of the box as a share of the result's.

    Returns:
        (V, 3, size, size) RGB in 0..1.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    middle, side = (low + high) / 2, (high - low).amax(-1) / ratio
    line = (torch.arange(size, device=rgba.device) + 0.5) / size - 0.5
    x = middle[:, 0, None] + side[:, None] * line
    y = middle[:, 1, None] + side[:, None] * line
    grid = torch.stack(
        (x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)), dim=-1
    )
    alpha = rgba[:, 3:]
    on_grey = rgba[:, :3] * alpha + GREY * (1 - alpha) - GREY
    return functional.grid_sample(on_grey, grid * 2 - 1, align_corners=False) + GREY
