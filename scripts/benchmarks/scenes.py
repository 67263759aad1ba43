"""Scene codes whose surface is known: a sphere and a box, written into a triplane by hand.

The decoder of these models computes with exact pieces: silu(x) - silu(-x) = x carries a sum of
plane features through a layer, and silu(x) - silu(x - c) is a soft clamp to 0..c.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from generation.lift.triposr import TripoSR, TripoSRConfig
from generation.lift.triposr.config import ViTConfig

SPHERE_RADIUS = 0.6
BOX_HALF_SIDES = (0.6, 0.45, 0.5)

_CLAMP = 22.0
_LOWEST = -12.0
_SIZE = 64
_CHANNELS = 4


def sphere(steepness: float = 2000.0) -> tuple[TripoSR, Tensor]:
    """A sphere of `SPHERE_RADIUS` about the origin; log-density falls by `steepness` per unit."""
    slope = steepness / (2 * SPHERE_RADIUS)

    def density(axis: int, value: Tensor) -> Tensor:
        return slope * (SPHERE_RADIUS**2 / 3 - value**2)

    return _scene(density)


def box(steepness: float = 2000.0) -> tuple[TripoSR, Tensor]:
    """An axis-aligned box with `BOX_HALF_SIDES`; log-density falls by `steepness` per unit."""

    def density(axis: int, value: Tensor) -> Tensor:
        # A third of the margin per axis puts the level of an undisturbed face on the face.
        margin = 0.01
        outside = (value.abs() - BOX_HALF_SIDES[axis] + margin).clamp_min(0.0)
        return steepness * (margin / 3 - outside)

    return _scene(density)


def linear_layers(model: TripoSR) -> list[nn.Linear]:
    """The decoder's linear layers, first to last."""
    return [layer for layer in model.decoder.layers if isinstance(layer, nn.Linear)]


def _scene(density: Callable[[int, Tensor], Tensor]) -> tuple[TripoSR, Tensor]:
    model = TripoSR(_config()).requires_grad_(False).eval()
    _write_decoder(model)
    # Plane texels are centred (align_corners off), so the outermost lie half a texel inside.
    axis = ((torch.arange(_SIZE) + 0.5) / _SIZE * 2 - 1) * model.radius
    code = torch.zeros(3, _CHANNELS, _SIZE, _SIZE)
    code[0, 0] = density(0, axis)[None, :] + density(1, axis)[:, None]
    code[1, 0] = density(2, axis)[:, None]
    waves = [1.5 * torch.sin(axis * 5 + phase) for phase in range(3)]
    code[0, 1] = waves[0][None, :]
    code[0, 2] = waves[1][:, None]
    code[1, 3] = waves[2][:, None]
    return model, code


def _config() -> TripoSRConfig:
    return TripoSRConfig(
        image_size=32,
        plane_size=_SIZE // 2,
        num_channels=32,
        num_attention_heads=1,
        attention_head_dim=32,
        num_layers=1,
        plane_channels=_CHANNELS,
        decoder_neurons=2 * _CHANNELS,
        decoder_hidden_layers=2,
        num_samples_per_ray=512,
        vit=ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
        ),
    )


def _write_decoder(model: TripoSR) -> None:
    eye = torch.eye(_CHANNELS)
    pair = torch.cat([eye, -eye])  # x and -x of every channel
    first, second, last = linear_layers(model)
    first.weight.copy_(pair.repeat(1, 3))  # the same for each plane: their features add up
    first.bias.zero_()
    carried = pair.T  # silu(x) - silu(-x) = x
    second.weight.copy_(torch.cat([carried, -carried]))
    second.bias.zero_()
    level = math.log(25.0) - model.config.density_bias - _LOWEST
    second.weight[_CHANNELS] = carried[0]
    second.bias[0], second.bias[_CHANNELS] = level, level - _CLAMP
    last.weight.copy_(pair.T)
    last.bias.zero_()
    last.bias[0] = _LOWEST
