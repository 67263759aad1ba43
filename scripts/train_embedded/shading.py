"""Light and paint: G-buffers of the world become pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from scripts.train_embedded.palette import palette
from scripts.train_embedded.world import BACKGROUND, MAX_PARTS

_LIGHT = (0.62, -0.42, 0.66)
"""Direction to the key light of the canonical shading: from the front, the left and above."""


@dataclass(frozen=True)
class Light:
    """One key light and a sky, for each of V pictures.

    Attributes:
        direction: (V, 3) unit vectors towards the key light.
        key: (V, 1) strength of the key light.
        ambient: (V, 1) strength of what comes from everywhere.
        sky: (V, 1) how much more comes from above.
    """

    direction: Tensor
    key: Tensor
    ambient: Tensor
    sky: Tensor

    @classmethod
    def canonical(cls, count: int, device: torch.device | str) -> "Light":
        """The light that every 3D colour is painted in."""
        direction = functional.normalize(torch.tensor(_LIGHT, device=device), dim=0)
        one = torch.ones(count, 1, device=device)
        return cls(direction.expand(count, 3), 0.44 * one, 0.70 * one, 0.08 * one)

    @classmethod
    def draw(cls, count: int, generator: torch.Generator) -> "Light":
        """Lights around the canonical one."""
        light = cls.canonical(count, generator.device)
        noise = torch.rand(count, 6, generator=generator, device=generator.device) * 2 - 1
        moved = functional.normalize(light.direction + 0.35 * noise[:, :3], dim=-1)
        key, ambient, sky = (noise[:, i : i + 1] for i in (3, 4, 5))
        return cls(
            moved,
            light.key * (1 + 0.25 * key),
            light.ambient * (1 + 0.08 * ambient),
            light.sky * (1 + sky),
        )

    def shade(self, normals: Tensor) -> Tensor:
        """Brightness (V, N) of surfaces with unit normals (V, N, 3)."""
        facing = torch.einsum("vnc,vc->vn", normals, self.direction).clamp_min(0)
        return self.ambient + self.key * facing + self.sky * normals[..., 2]


def part_colours(paints: Tensor, objects: Tensor, main: Tensor) -> Tensor:
    """Colours of every part.

    Args:
        paints: (objects, parts, 4), see `world.paint_table`.
        objects: (V,) object numbers.
        main: (V, 3) the named colours.

    Returns:
        (V, parts, 3) RGB.
    """
    paint = paints[objects]
    return paint[..., :1] * main[:, None] + paint[..., 1:]


def draw_backgrounds(main: Tensor, generator: torch.Generator) -> Tensor:
    """Plain backgrounds (V, 3) for objects of main colour (V, 3): light grey, darker for white."""
    count, device = len(main), main.device
    level = torch.rand(count, 1, generator=generator, device=device)
    tint = torch.rand(count, 3, generator=generator, device=device) * 0.06 - 0.03
    light, dark = 0.80 + 0.12 * level, 0.34 + 0.14 * level
    bright = main.amin(-1, keepdim=True) > 0.75
    return torch.where(bright, dark, light) + tint


def jitter_colours(names: Tensor, generator: torch.Generator) -> Tensor:
    """RGB (V, 3) near the named colours `names` (V,)."""
    main = palette(names.device)[names]
    noise = torch.rand(main.shape, generator=generator, device=main.device) * 2 - 1
    return (main + 0.02 * noise).clamp(0.02, 0.95)


def paint_pixels(normals: Tensor, parts: Tensor, colours: Tensor, light: Light) -> Tensor:
    """Shades G-buffers.

    Args:
        normals: (V, S, S, 3) int8, times 127.
        parts: (V, S, S) uint8.
        colours: (V, parts, 3) RGB.
        light: V lights.

    Returns:
        (V, 4, S, S) float32: RGB times coverage, and coverage, which is 0 or 1.
    """
    size = parts.shape[1]
    covered = (parts != BACKGROUND).flatten(1)
    index = parts.flatten(1).long().clamp_max(MAX_PARTS - 1)
    albedo = colours.gather(1, index[..., None].expand(-1, -1, 3))
    shade = light.shade(normals.flatten(1, 2).float() / 127)
    rgb = (albedo * shade[..., None]).clamp(0, 1) * covered[..., None]
    rgba = torch.cat([rgb, covered[..., None].float()], dim=-1)
    return rgba.transpose(1, 2).reshape(-1, 4, size, size)


def over(rgba: Tensor, background: Tensor) -> Tensor:
    """Lays premultiplied RGBA (V, 4, H, W) over plain colours (V, 3); returns (V, 3, H, W)."""
    return rgba[:, :3] + (1 - rgba[:, 3:]) * background[:, :, None, None]


def halve(images: Tensor) -> Tensor:
    """Averages 2 x 2 pixels, which smooths the edges of a picture taken at twice the size."""
    return functional.avg_pool2d(images, 2)
